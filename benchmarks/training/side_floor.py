"""
What no step can be faster than: the encoder's dense products, and one pass over parameters and Adam's moments.

The pass is a copy of as many bytes as are read and written of them, in pieces of 64 MiB.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from serving import Done, Shape, serve

_PIECE = 16 << 20  # numbers


def make(shape: Shape) -> Callable[[], Done]:
    """Random weights and inputs."""
    weights_LFD = torch.randn(shape.num_layers, shape.num_features, shape.d_model)
    inputs_LTD = torch.randn(shape.num_layers, shape.num_tokens, shape.d_model)
    preact_TF = torch.empty(shape.num_tokens, shape.num_features)
    left = 3 * (shape.num_layers + shape.num_pairs) * shape.num_features * shape.d_model
    source, target = torch.zeros(min(_PIECE, left)), torch.zeros(min(_PIECE, left))

    def step() -> Done:
        for weight_FD, inputs_TD in zip(weights_LFD, inputs_LTD, strict=True):
            torch.mm(inputs_TD, weight_FD.T, out=preact_TF)
        for first in range(0, left, _PIECE):
            count = min(_PIECE, left - first)
            target[:count].copy_(source[:count])
        return Done(active=0.0)

    return step


if __name__ == "__main__":
    serve(make)
