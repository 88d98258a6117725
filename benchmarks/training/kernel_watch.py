"""Seconds that a step spends in each of the CPU's kernels."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # Whoever wants only the names need not load torch.
    from weft_clt.kernels import CpuKernels

__all__ = ["PARTS", "watch"]

PARTS = {
    "encode": "encode and select",
    "merge": "lists of entries",
    "decode_pass": "decode",
    "value_grad_pass": "value gradients",
    "decoder_adam": "decoder gradient and Adam",
    "encode_backward": "encoder gradient",
    "sum_squares": "norm of the encoder's gradient",
    "add_row_squares": "norms of decoder rows",
    "adam": "encoder's Adam",
}
"""Methods of the kernels, and what their rows are called."""


def watch(kernels: CpuKernels) -> dict[str, float]:
    """Return a table of seconds by part that every call of a kernel adds to; whoever reads it clears it."""
    seconds: dict[str, float] = {}

    def watched(part: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start_s = time.perf_counter()
            result = kernel(*args, **kwargs)
            seconds[part] = seconds.get(part, 0.0) + time.perf_counter() - start_s
            return result

        return call

    for method, part in PARTS.items():
        setattr(kernels, method, watched(part, getattr(kernels, method)))
    return seconds
