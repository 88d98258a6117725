"""A TopK CLT as a short program in stock torch has it: dense activations, one product a target layer, autograd."""

from __future__ import annotations

from collections.abc import Callable

import torch
from serving import Shape, serve
from torch.nn import Parameter


def make(shape: Shape) -> Callable[[], float]:
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

    def step() -> float:
        acts, active = [], 0
        for layer in layers:
            preact = torch.addmm(b_enc[layer], inputs[layer], w_enc[layer])
            best = torch.topk(preact, shape.active, dim=1, sorted=False)
            acts.append(torch.zeros_like(preact).scatter(1, best.indices, torch.relu(best.values)))
            active += int((best.values > 0).sum())
        loss = torch.zeros(())
        for target in layers:
            predicted = torch.cat(acts[: target + 1], 1) @ w_dec[target] + b_dec[target]
            loss = loss + (predicted - targets[target]).square().sum() / shape.num_tokens
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        adam.step()
        return active / shape.num_layers / shape.num_tokens

    return step


if __name__ == "__main__":
    serve(make)
