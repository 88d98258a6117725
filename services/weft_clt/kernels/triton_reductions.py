"""
Norms: plain passes over a decoder block.

A program takes one row, or one block of a flat tensor; sums within it are float32 in a tree, over blocks float64.
Shapes: see `weft_clt.kernels.port`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from weft_clt.kernels.triton_numbers import jit, rounded
from weft_clt.kernels.triton_rows import column_block

__all__ = ["add_row_squares", "sum_squares"]

_BLOCK = 4096


@jit
def row_squares_kernel(weight: tl.tensor, out: tl.tensor, num_columns: tl.tensor, COLUMNS: tl.constexpr) -> None:
    """out[f] += |weight[f]|^2."""
    feature = tl.program_id(0)
    row = weight + feature.to(tl.int64) * num_columns
    total = tl.zeros([COLUMNS], dtype=tl.float32)
    for first in range(0, num_columns, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        w = tl.load(row + column, mask=column < num_columns, other=0.0).to(tl.float32)
        total += w * w
    before = tl.load(out + feature).to(tl.float32)
    tl.store(out + feature, rounded(before + tl.sum(total, 0), out.dtype.element_ty))


@jit
def squares_kernel(values: tl.tensor, part: tl.tensor, numel: tl.tensor, BLOCK: tl.constexpr) -> None:
    """part[b] = sum of the squares of block b."""
    block = tl.program_id(0)
    offset = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(values + offset, mask=offset < numel, other=0.0).to(tl.float32)
    tl.store(part + block, tl.sum(v * v, 0))


def add_row_squares(w_FC: Tensor, out_F: Tensor) -> None:
    """Add the squared norm of every row to `out_F`."""
    num_features, num_columns = w_FC.shape
    row_squares_kernel[(num_features,)](w_FC, out_F, num_columns, COLUMNS=column_block(num_columns, 2048), num_warps=4)


def sum_squares(values: Tensor) -> float:
    """Sum the squares of a contiguous tensor; waits for the device."""
    numel = values.numel()
    if not numel:
        return 0.0
    part_B = torch.empty(triton.cdiv(numel, _BLOCK), dtype=torch.float32, device=values.device)
    squares_kernel[(part_B.shape[0],)](values, part_B, numel, BLOCK=_BLOCK, num_warps=4)
    return float(part_B.sum(dtype=torch.float64))
