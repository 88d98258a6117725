"""A TopK CLT as a short program in stock torch has it: dense activations, one product a target layer, autograd."""

from __future__ import annotations

from collections.abc import Callable

import torch
from serving import Done, Shape, serve
from torch import Tensor
from torch.nn import Parameter


def make(shape: Shape) -> Callable[[], Done]:
    """Random weights and data."""
    layers, features, d_model = range(shape.num_layers), shape.num_features, shape.d_model
    torch.manual_seed(0)
    inputs, targets = torch.randn(2, shape.num_layers, shape.num_tokens, d_model)
    w_enc = [Parameter(torch.randn(d_model, features) / d_model**0.5) for _ in layers]
    b_enc = [Parameter(torch.zeros(features)) for _ in layers]
    w_dec = [Parameter(torch.zeros((target + 1) * features, d_model)) for target in layers]
    b_dec = [Parameter(torch.zeros(d_model)) for _ in layers]
    params = [*w_enc, *b_enc, *w_dec, *b_dec]
    adam = torch.optim.Adam(params, lr=1e-3, fused=True)

    def add_pass(inputs_LCD: Tensor, targets_LCD: Tensor) -> int:
        """Add the gradients of some tokens; returns how many features were active."""
        acts, active = [], 0
        for layer in layers:
            preact = torch.addmm(b_enc[layer], inputs_LCD[layer], w_enc[layer])
            best = torch.topk(preact, shape.active, dim=1, sorted=False)
            acts.append(torch.zeros_like(preact).scatter(1, best.indices, torch.relu(best.values)))
            active += int((best.values > 0).sum())
        loss = torch.zeros(())
        for target in layers:
            predicted = torch.cat(acts[: target + 1], 1) @ w_dec[target] + b_dec[target]
            loss = loss + (predicted - targets_LCD[target]).square().sum() / shape.num_tokens
        loss.backward()
        return active

    def step() -> Done:
        adam.zero_grad()
        chunks = zip(inputs.chunk(shape.passes, 1), targets.chunk(shape.passes, 1), strict=True)
        active = sum(add_pass(*chunk) for chunk in chunks)
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        adam.step()
        return Done(active=active / shape.num_layers / shape.num_tokens)

    return step


if __name__ == "__main__":
    serve(make)
