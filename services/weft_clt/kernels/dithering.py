"""
Weights and Adam's moments in bfloat16: computed in the gradient's type, and rounded so that the mean is the value.

Rounded to nearest, a second moment with beta2 = 0.999 would stall: what a step changes is less than half a unit in its
last place. So would a weight whose steps are less than 1/512 of it. Source: Gupta et al. 2015, "Deep learning with
limited numerical precision". The noise is that of `triton_adam`, a hash of the step and of an element's place in its
tensor (lowbias32, Wellons 2018), so that repetitions and data ranks round alike. Infinities and not-a-numbers stay what
they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from weft_clt.kernels.port import AdamStep

__all__ = ["rounded_adam", "rounds"]

_WORD = 0xFFFFFFFF
_PART = 1 << 18  # elements at a time, so that their wide copies stay in a cache


def _hashed(word_N: Tensor) -> Tensor:
    """Mix words of 32 bits, kept as int64."""
    word_N = ((word_N ^ (word_N >> 16)) * 0x7FEB352D) & _WORD
    word_N = ((word_N ^ (word_N >> 15)) * 0x846CA68B) & _WORD
    return word_N ^ (word_N >> 16)


def _noise(first_place: int, count: int, seed: int, device: torch.device) -> Tensor:
    place_N = torch.arange(first_place, first_place + count, device=device)
    high_N = _hashed(((place_N >> 32) + seed * 0x9E3779B9) & _WORD)
    return _hashed(((place_N & _WORD) + high_N) & _WORD)


def _store(wide_N: Tensor, random_N: Tensor, out_N: Tensor) -> None:
    bits_N = wide_N.float().view(torch.int32) + (random_N & 0xFFFF).to(torch.int32)
    out_N.view(torch.int16).copy_(bits_N >> 16)


def rounds(param: Tensor, grad: Tensor, second: Tensor) -> bool:
    """Whether Adam has something to round: parameters or moments in bfloat16 beside a wider gradient."""
    return grad.dtype is not torch.bfloat16 and torch.bfloat16 in (param.dtype, second.dtype)


def rounded_adam(
    adam: Callable[..., Any], param: Tensor, grad: Tensor, first: Tensor | None, second: Tensor, step: AdamStep
) -> None:
    """
    Update some elements at a time, with what is bfloat16 widened and then rounded.

    Args:
        adam: `Kernels.adam` for parameters and moments of the gradient's type, which those that are not bfloat16 have.
        param: Its offset in its storage is its elements' first place.
    """
    flat_grad = grad.view(-1)
    kept = [None if tensor is None else tensor.view(-1) for tensor in (param, first, second)]
    for start in range(0, flat_grad.shape[0], _PART):
        part = slice(start, min(start + _PART, flat_grad.shape[0]))
        wide = [None if tensor is None else tensor[part].to(grad.dtype) for tensor in kept]
        wide_param, wide_first, wide_second = wide
        adam(wide_param, flat_grad[part], wide_first, wide_second, step)
        random_N = _noise(int(param.storage_offset()) + start, part.stop - start, step.step, param.device)
        for tensor, wide_N, bits_N in zip(kept, wide, (random_N, _hashed(random_N), random_N >> 16), strict=True):
            if tensor is not None and wide_N is not None and tensor.dtype is torch.bfloat16:
                _store(wide_N, bits_N, tensor[part])
