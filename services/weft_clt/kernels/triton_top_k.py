"""
The largest values of every token, by bisection over the bits of the smallest one kept.

Exact for any row length and any top k, without sorting: 32 counts over a row, which stays in the first-level cache.
Among equals the entry listed first wins. Shapes: T tokens, N entries by token.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from weft_clt.kernels.triton_numbers import jit

__all__ = ["keep_largest"]

_BLOCK = 256


@jit
def _codes(value: tl.tensor, entry: tl.tensor, listed: tl.tensor) -> tl.tensor:
    """From values to numbers of 32 bits in the same order, int64; -0 counts as 0."""
    wide = tl.load(value + entry, mask=listed, other=0.0).to(tl.float32) + 0.0
    bits = wide.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) + 2147483648


@jit
def keep_largest_kernel(
    row_start: tl.tensor, value: tl.tensor, keep: tl.tensor, smallest: tl.tensor, top_k: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Mark the top_k largest values of a token; `smallest` is the least of them, 0 where there are fewer."""
    token = tl.program_id(0)
    start, end = tl.load(row_start + token), tl.load(row_start + token + 1)
    if end - start <= top_k:
        least = tl.full((), float("inf"), tl.float32)
        for first in range(start, end, BLOCK):
            entry = first + tl.arange(0, BLOCK)
            listed = entry < end
            part = tl.load(value + entry, mask=listed, other=float("inf")).to(tl.float32)
            least = tl.minimum(least, tl.min(part, 0))
            tl.store(keep + entry, tl.full([BLOCK], 1, tl.int8), mask=listed)
        tl.store(smallest + token, tl.where(end - start == top_k, least, 0.0))
    else:
        bound = tl.full((), 0, tl.int64)
        bit = tl.full((), 2147483648, tl.int64)
        for _ in range(32):
            trial = bound | bit
            count = tl.full((), 0, tl.int32)
            for first in range(start, end, BLOCK):
                entry = first + tl.arange(0, BLOCK)
                listed = entry < end
                count += tl.sum((listed & (_codes(value, entry, listed) >= trial)).to(tl.int32), 0)
            bound = tl.where(count >= top_k, trial, bound)
            bit = bit >> 1
        larger = tl.full((), 0, tl.int32)
        for first in range(start, end, BLOCK):
            entry = first + tl.arange(0, BLOCK)
            listed = entry < end
            larger += tl.sum((listed & (_codes(value, entry, listed) > bound)).to(tl.int32), 0)
        ties = top_k - larger
        seen = tl.full((), 0, tl.int32)
        for first in range(start, end, BLOCK):
            entry = first + tl.arange(0, BLOCK)
            listed = entry < end
            code = _codes(value, entry, listed)
            equal = (listed & (code == bound)).to(tl.int32)
            before = seen + tl.cumsum(equal, 0) - equal
            kept = (listed & (code > bound)) | ((equal > 0) & (before < ties))
            tl.store(keep + entry, kept.to(tl.int8), mask=listed)
            seen += tl.sum(equal, 0)
        signed = (bound - 2147483648).to(tl.int32)
        bits = signed ^ ((signed >> 31) & 0x7FFFFFFF)
        tl.store(smallest + token, bits.to(tl.float32, bitcast=True))


def keep_largest(row_start_T1: Tensor, value_N: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """
    Mark the `top_k` largest values of every token.

    Args:
        row_start_T1: First entry of a token, and one more, int32.
        top_k: At least 1.

    Returns:
        A boolean for every entry, and for every token the smallest value kept, 0 where it has fewer; float32.
    """
    num_tokens = row_start_T1.shape[0] - 1
    keep_N = torch.empty(value_N.shape[0], dtype=torch.int8, device=value_N.device)
    smallest_T = torch.zeros(num_tokens, dtype=torch.float32, device=value_N.device)
    if num_tokens:
        keep_largest_kernel[(num_tokens,)](row_start_T1, value_N, keep_N, smallest_T, top_k, BLOCK=_BLOCK, num_warps=1)
    return keep_N.bool(), smallest_T
