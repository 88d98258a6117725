"""Updates of tensors in bfloat16, and how far what they leave lies from exact numbers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from weft_clt.kernels import AdamStep, Kernels

__all__ = ["drawn", "errors_of", "updated"]


def drawn(seed: int, *shape: int) -> Tensor:
    """Normal numbers, float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def errors_of(found: Tensor, exact: Tensor) -> Tensor:
    """How far bfloat16 numbers lie from exact ones, in units of their last place."""
    assert found.dtype is torch.bfloat16
    spacing = torch.exp2(torch.floor(torch.log2(exact.abs().clamp(min=1e-30))) - 7)
    return (found.double() - exact) / spacing


def updated(
    kernels: Kernels, start: Tensor, grad: Tensor, moments: Sequence[Tensor], beta1: float, step: AdamStep
) -> list[Tensor]:
    """Parameter and both moments after an update, which a repetition gives to the bit."""
    runs = []
    for _ in range(2):
        param, first, second = start.clone(), moments[0].clone(), moments[1].clone()
        kernels.adam(param, grad, first if beta1 else None, second, step)
        runs.append([param, first, second])
    for once, again in zip(*runs, strict=True):
        assert torch.equal(once, again)
    return runs[0]
