"""
How much memory a side will need, before it is started: so that sides that do not fit together take turns.

Estimates: parameters, gradients and Adam's moments by count, and of activations what is alive at once, from the peers'
code and the peaks measured at 12 layers of 768 (F 2,048, T 1,024) and 30 of 576 (F 1,024, T 512), within 15 % there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from serving import Shape

__all__ = [
    "Needed", "clt_forge_bytes", "dense_bytes", "fitting", "floor_bytes", "free_bytes", "usable_bytes", "weft_bytes",
]  # fmt: skip

Needed = Callable[[Shape], int]
"""Bytes of a side at a shape."""

_ITEM = 4
_PROCESS_BYTES = 350 << 20
"""Interpreter and torch."""
_MARGIN = 0.85
"""Of the memory that is free."""


def _parameters(shape: Shape) -> tuple[int, int]:
    """Count those of the encoder and of the decoder."""
    row = shape.num_features * shape.d_model
    return shape.num_layers * row, shape.num_pairs * row


def clt_forge_bytes(shape: Shape) -> int:
    """Estimate CLT-Forge's: activations and outputs for each pair of layers, and the decoder's squares."""
    encoder, decoder = _parameters(shape)
    tokens, layers, pairs = shape.num_tokens // shape.passes, shape.num_layers, shape.num_pairs
    acts = tokens * shape.num_features * (3 * pairs + 10 * layers)
    outputs = tokens * shape.d_model * (2.5 * pairs)
    data = 2 * shape.num_tokens * layers * shape.d_model
    return int(_ITEM * (4 * (encoder + decoder) + decoder + acts + outputs + data)) + _PROCESS_BYTES


def dense_bytes(shape: Shape) -> int:
    """Estimate the dense step's: for each target layer the activations of all layers up to it."""
    encoder, decoder = _parameters(shape)
    tokens, layers = shape.num_tokens // shape.passes, shape.num_layers
    acts = tokens * shape.num_features * (shape.num_pairs + 6 * layers)
    data = 2 * shape.num_tokens * layers * shape.d_model
    return _ITEM * (4 * (encoder + decoder) + acts + data) + _PROCESS_BYTES


def weft_bytes(shape: Shape) -> int:
    """Estimate weft's: no gradient of the decoder, and pre-activations of all layers only for JumpReLU."""
    encoder, decoder = _parameters(shape)
    streams = 5 * shape.num_layers * shape.num_tokens * shape.d_model
    preacts = shape.num_layers if shape.activation == "jump-relu" else 1
    acts = 3 * preacts * shape.num_tokens * shape.num_features
    return _ITEM * (4 * encoder + 3 * decoder + streams + acts) + shape.num_ranks * _PROCESS_BYTES


def floor_bytes(shape: Shape) -> int:
    """Estimate the floor's."""
    encoder, _ = _parameters(shape)
    acts = shape.num_tokens * (shape.num_features + shape.num_layers * shape.d_model)
    return _ITEM * (encoder + acts + (32 << 20)) + _PROCESS_BYTES


def free_bytes() -> int:
    """Return the memory that processes can still have; where the system does not tell, half of what there is."""
    facts = Path("/proc/meminfo")
    if facts.exists():
        return 1024 * int(facts.read_text().split("MemAvailable:", 1)[1].split(maxsplit=1)[0])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def usable_bytes(free: int) -> int:
    """Return what sides may plan with."""
    return int(_MARGIN * free)


def fitting(shape: Shape, needed: Needed, usable: int) -> Shape | None:
    """Return the shape in the fewest passes that fit, by doubling; None where one token at a time is too much."""
    while needed(shape) > usable:
        shape = replace(shape, passes=2 * shape.passes)
        if shape.num_tokens % shape.passes:
            return None
    return shape
