"""
CLT-Forge's own step, by its own code: forward pass and losses, backward pass, then clipping and Adam as its trainer.

Source: LLM-Interp/CLT-Forge at dcf4cc8, `clt_forge/training/clt_trainer.py`. Runs in an environment that has what its
`clt.py` imports: torch, pydantic, safetensors, jaxtyping.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from serving import Done, Shape, serve

_LAMBDA, _DEAD_PENALTY = 1e-5, 1e-5
"""The first is what a ramp to 2 has in its first steps."""


def make(shape: Shape) -> Callable[[], Done]:
    """Its own start, random data, and biases such that as many features are active as asked."""
    sys.path.insert(0, f"{shape.clt_forge}/src")
    from clt_forge.clt import CLT
    from clt_forge.config import CLTConfig

    clt = CLT(
        CLTConfig(
            device="cpu",
            dtype="float32",
            seed=0,
            model_name="",
            d_in=shape.d_model,
            d_latent=shape.num_features,
            n_layers=shape.num_layers,
            jumprelu_bandwidth=1.0,
            jumprelu_init_threshold=0.03,
            normalize_decoder=False,
            dead_feature_window=250,
            cross_layer_decoders=True,
            context_size=16,
            l0_coefficient=2.0,
        )
    )
    torch.manual_seed(0)
    inputs_LTD, targets_LTD = torch.randn(2, shape.num_layers, shape.num_tokens, shape.d_model)
    inputs, targets = (each.transpose(0, 1).contiguous() for each in (inputs_LTD, targets_LTD))
    firing = max(1, round(shape.num_tokens * shape.active / shape.num_features))
    with torch.no_grad():
        for layer in range(shape.num_layers):
            largest = (inputs_LTD[layer] @ clt.W_enc[layer]).topk(firing + 1, dim=0).values
            clt.b_enc[layer] = clt.log_threshold[layer].exp() - largest[-2:].mean(0)
    adam = torch.optim.Adam(clt.parameters(), lr=4e-4, betas=(0.9, 0.999))

    def step() -> Done:
        adam.zero_grad()
        active = 0.0
        # Several passes are its trainer's `gradient_accumulation_steps`.
        for some_inputs, some_targets in zip(inputs.chunk(shape.passes), targets.chunk(shape.passes), strict=True):
            loss, metrics = clt(some_inputs, some_targets, _LAMBDA, df_coef=_DEAD_PENALTY)
            (loss / shape.passes).backward()
            active += float((metrics.feature_acts > 0).sum())
            del loss, metrics
        torch.nn.utils.clip_grad_norm_(clt.parameters(), 1.0, foreach=False)
        adam.step()
        return Done(active=active / shape.num_layers / shape.num_tokens)

    return step


if __name__ == "__main__":
    serve(make)
