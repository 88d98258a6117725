"""
From float32, in which every Triton kernel computes, to the type that a tensor is kept in.

Rounding to bfloat16 is written out in bits: to nearest for results, and stochastic for what a step changes by less than
half a unit in the last place (parameters and moments), which would otherwise stall. Source: Gupta et al. 2015,
"Deep learning with limited numerical precision". Infinities and not-a-numbers pass unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

__all__ = ["dithered", "jit", "rounded"]


_VARYING = ["num_entries", "room", "seed", "top_k"]
"""Arguments of which no value deserves a compilation of its own, as 1 and multiples of 16 otherwise get."""
_SLICED = ["token", "value", "row_end"]
"""Addresses inside longer lists: read entry by entry, so alignment does not matter."""


def jit(function: Callable[..., Any]) -> Any:
    """Compile for the device at the first launch; under TRITON_INTERPRET=1, run as NumPy."""
    return triton.jit(function, do_not_specialize=_VARYING, do_not_specialize_on_alignment=_SLICED)


@jit
def _shortened(wide: tl.tensor, added: tl.tensor) -> tl.tensor:
    """Add to the bits that bfloat16 lacks, and cut them off."""
    bits = wide.to(tl.uint32, bitcast=True) + added
    short = (bits & 0xFFFF0000).to(tl.float32, bitcast=True)
    return tl.where(tl.abs(wide) < float("inf"), short, wide).to(tl.bfloat16)


@jit
def rounded(wide: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """Round float32 to the nearest value of `dtype`, to even among equals."""
    if dtype == tl.bfloat16:
        return _shortened(wide, 0x7FFF + ((wide.to(tl.uint32, bitcast=True) >> 16) & 1))
    else:  # noqa: RET505 - only one branch is compiled
        return wide.to(dtype)


@jit
def dithered(wide: tl.tensor, random: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """
    Round float32 up or down to `dtype`, such that the mean is the value itself.

    Args:
        random: 32 uniform bits an element; unused where `dtype` is not bfloat16.
    """
    if dtype == tl.bfloat16:
        return _shortened(wide, random.to(tl.uint32, bitcast=True) & 0xFFFF)
    else:  # noqa: RET505 - only one branch is compiled
        return wide.to(dtype)
