"""
Adam's moments in bfloat16: computed in the parameters' type, and rounded up or down so that the mean is the value.

Rounded to nearest, a second moment with beta2 = 0.999 would stall: what a step changes is less than half a unit in its
last place. Source: Gupta et al. 2015, "Deep learning with limited numerical precision". The noise is that of
`triton_adam`, a hash of the step and of an element's place in its tensor (lowbias32, Wellons 2018), so that repetitions
and data ranks round alike. Infinities and not-a-numbers stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from weft_clt.kernels.port import AdamStep

__all__ = ["adam_of_narrow_moments"]

_WORD = 0xFFFFFFFF
_PART = 1 << 18  # elements at a time, so that their wide moments stay in a cache


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


def adam_of_narrow_moments(
    adam: Callable[..., Any], param: Tensor, grad: Tensor, first: Tensor | None, second: Tensor, step: AdamStep
) -> None:
    """
    Update some elements at a time, with their moments widened and then rounded.

    Args:
        adam: `Kernels.adam` for moments of the parameter's type.
        param: Its offset in its storage is its elements' first place.
    """
    flat_param, flat_grad, flat_second = param.view(-1), grad.view(-1), second.view(-1)
    flat_first = None if first is None else first.view(-1)
    for start in range(0, flat_param.shape[0], _PART):
        part = slice(start, min(start + _PART, flat_param.shape[0]))
        wide_first = None if flat_first is None else flat_first[part].to(param.dtype)
        wide_second = flat_second[part].to(param.dtype)
        adam(flat_param[part], flat_grad[part], wide_first, wide_second, step)
        random_N = _noise(int(param.storage_offset()) + start, part.stop - start, step.step, param.device)
        _store(wide_second, random_N >> 16, flat_second[part])
        if flat_first is not None and wide_first is not None:
            _store(wide_first, _hashed(random_N), flat_first[part])
