"""
Adam's update in one pass over parameter, gradient and moments.

Computed in float32; what is kept in bfloat16 is dithered (`triton_numbers`), with noise that depends only on the step
and the place of an element in its tensor, so ranks that hold the same tensor round alike. The noise is a hash of a
dozen instructions, because ten rounds of Philox would take longer than the memory does. Source of the hash: Wellons
2018, "Prospecting for hash functions", lowbias32. Deviations from Adam: none but the rounding.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from weft_clt.kernels.port import AdamStep
from weft_clt.kernels.triton_numbers import dithered, jit

__all__ = ["adam_scalars", "store_adam", "update"]

_BLOCK = 1024


@jit
def _hashed(word: tl.tensor) -> tl.tensor:
    word = (word ^ (word >> 16)) * 0x7FEB352D
    word = (word ^ (word >> 15)) * 0x846CA68B
    return word ^ (word >> 16)


@jit
def store_adam(
    param: tl.tensor, first: tl.tensor, second: tl.tensor, grad: tl.tensor, offset: tl.tensor, place: tl.tensor,
    mask: tl.tensor, param_mask: tl.tensor, seed: tl.tensor, beta1: tl.tensor, rest1: tl.tensor, beta2: tl.tensor,
    rest2: tl.tensor, rate: tl.tensor, root: tl.tensor, epsilon: tl.tensor, HAS_FIRST: tl.constexpr,
) -> None:  # fmt: skip
    """
    Update the elements at `offset` by a scaled gradient.

    Args:
        place: Of an element in its whole tensor, int64, for the noise.
        param_mask: Where the parameter may change; elsewhere only the second moment decays.
    """
    high = _hashed((place >> 32).to(tl.uint32) + seed.to(tl.uint32) * 0x9E3779B9)
    noise = _hashed((place & 0xFFFFFFFF).to(tl.uint32) + high)
    v = beta2 * tl.load(second + offset, mask=mask, other=0.0).to(tl.float32) + rest2 * grad * grad
    tl.store(second + offset, dithered(v, noise >> 16, second.dtype.element_ty), mask=mask)
    m = grad
    if HAS_FIRST:
        m = beta1 * tl.load(first + offset, mask=mask, other=0.0).to(tl.float32) + rest1 * grad
        tl.store(first + offset, dithered(m, _hashed(noise), first.dtype.element_ty), mask=mask)
    w = tl.load(param + offset, mask=param_mask, other=0.0).to(tl.float32)
    w = w - rate * m / (tl.sqrt(v) * root + epsilon)
    tl.store(param + offset, dithered(w, noise, param.dtype.element_ty), mask=param_mask)


@jit
def adam_kernel(
    param: tl.tensor, grad: tl.tensor, first: tl.tensor, second: tl.tensor, numel: tl.tensor,
    first_place: tl.tensor, seed: tl.tensor, grad_scale: tl.tensor, beta1: tl.tensor, rest1: tl.tensor,
    beta2: tl.tensor, rest2: tl.tensor, rate: tl.tensor, root: tl.tensor, epsilon: tl.tensor,
    HAS_FIRST: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """One block of a flat tensor."""
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offset < numel
    g = tl.load(grad + offset, mask=mask, other=0.0).to(tl.float32) * grad_scale
    store_adam(
        param, first, second, g, offset, offset + first_place, mask, mask, seed,
        beta1, rest1, beta2, rest2, rate, root, epsilon, HAS_FIRST,
    )  # fmt: skip


def adam_scalars(step: AdamStep) -> dict[str, float | int]:
    """Return the scalars of an update as the kernels name them; `rate` and `root` hold the bias corrections."""
    return {
        "seed": step.step,
        "grad_scale": float(step.grad_scale),
        "beta1": float(step.beta1),
        "rest1": float(1 - step.beta1),
        "beta2": float(step.beta2),
        "rest2": float(1 - step.beta2),
        "rate": float(step.learning_rate / (1 - step.beta1**step.step)),
        "root": float((1 - step.beta2**step.step) ** -0.5),
        "epsilon": float(step.epsilon),
    }


def update(param: Tensor, grad: Tensor, first: Tensor | None, second: Tensor, step: AdamStep) -> None:
    """Update `param`, `first` and `second` in place; their types may differ, and more than 2^31 elements are fine."""
    numel = param.numel()
    if not numel:
        return
    adam_kernel[(triton.cdiv(numel, _BLOCK),)](
        param, grad, second if first is None else first, second, numel, param.storage_offset(),
        **adam_scalars(step), HAS_FIRST=first is not None, BLOCK=_BLOCK, num_warps=4,
    )  # fmt: skip
