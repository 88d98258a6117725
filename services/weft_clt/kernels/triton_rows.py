"""
Products by token: the rows of a token's features, gathered from a decoder block.

A program takes one token and one block of columns, and reads several rows at once so that memory stays busy. Programs
of one column block run together: where that block of the decoder fits the second-level cache, memory is read once.
Sums are in float32 and always in the order of the entries. Row offsets are 64 bit: F x C may pass 2^31.
Shapes: see `weft_clt.kernels.port`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from weft_clt.active import ActiveLayer
from weft_clt.kernels.triton_numbers import jit, rounded

__all__ = ["add_decoded", "add_value_gradients", "column_block"]

_ROWS = 16
"""Rows read at once."""
_MOST_COLUMNS = 512


def column_block(num_columns: int, most: int) -> int:
    """
    Return the columns of a program: a power of two, at least 16.

    >>> column_block(40, 512), column_block(4096, 512), column_block(1, 512)
    (64, 512, 16)
    """
    return int(min(most, max(16, triton.next_power_of_2(num_columns))))


@jit
def decode_kernel(
    row_start: tl.tensor, row_active: tl.tensor, feature: tl.tensor, value: tl.tensor, weight: tl.tensor,
    out: tl.tensor, num_columns: tl.tensor, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
) -> None:  # fmt: skip
    """out[t] += sum over entries n of token t of value[n] * weight[feature[n]]."""
    token = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < num_columns
    start, end = tl.load(row_start + token), tl.load(row_active + token)
    if end > start:
        total = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
        for first in range(start, end, ROWS):
            entry = first + tl.arange(0, ROWS)
            listed = entry < end
            row = tl.load(feature + entry, mask=listed, other=0).to(tl.int64) * num_columns
            scale = tl.load(value + entry, mask=listed, other=0.0).to(tl.float32)
            part = tl.load(
                weight + row[:, None] + column[None, :], mask=listed[:, None] & inside[None, :], other=0.0
            ).to(tl.float32)
            total += scale[:, None] * part
        spot = out + token.to(tl.int64) * num_columns + column
        before = tl.load(spot, mask=inside, other=0.0).to(tl.float32)
        tl.store(spot, rounded(before + tl.sum(total, 0), out.dtype.element_ty), mask=inside)


@jit
def value_gradient_kernel(
    row_first: tl.tensor, row_end: tl.tensor, feature: tl.tensor, weight: tl.tensor, grad_out: tl.tensor,
    grad_value: tl.tensor, num_columns: tl.tensor, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
) -> None:  # fmt: skip
    """grad_value[n] += weight[feature[n]] . grad_out[t] for the entries n of token t from `row_first` to `row_end`."""
    token = tl.program_id(0)
    start, end = tl.load(row_first + token), tl.load(row_end + token)
    grad_row = token.to(tl.int64) * num_columns
    for first in range(start, end, ROWS):
        entry = first + tl.arange(0, ROWS)
        listed = entry < end
        row = tl.load(feature + entry, mask=listed, other=0).to(tl.int64) * num_columns
        total = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
        for first_column in range(0, num_columns, COLUMNS):
            column = first_column + tl.arange(0, COLUMNS)
            inside = column < num_columns
            grad = tl.load(grad_out + grad_row + column, mask=inside, other=0.0).to(tl.float32)
            part = tl.load(
                weight + row[:, None] + column[None, :], mask=listed[:, None] & inside[None, :], other=0.0
            ).to(tl.float32)
            total += part * grad[None, :]
        spot = grad_value + entry
        before = tl.load(spot, mask=listed, other=0.0).to(tl.float32)
        tl.store(spot, rounded(before + tl.sum(total, 1), grad_value.dtype.element_ty), mask=listed)


def add_decoded(active: ActiveLayer, w_dec_FC: Tensor, out_TC: Tensor) -> None:
    """Add to `out_TC` the decoder rows of the active features, times their values; the three types may differ."""
    num_tokens, num_columns = out_TC.shape
    if not num_tokens or not active.value_N.shape[0]:
        return
    columns = column_block(num_columns, _MOST_COLUMNS)
    decode_kernel[(num_tokens, triton.cdiv(num_columns, columns))](
        active.row_start_T1, active.row_active_T, active.feature_N, active.value_N, w_dec_FC, out_TC, num_columns,
        ROWS=_ROWS, COLUMNS=columns, num_warps=4,
    )  # fmt: skip


def add_value_gradients(
    active: ActiveLayer, w_dec_FC: Tensor, grad_out_TC: Tensor, grad_value_N: Tensor, *, near_only: bool = False
) -> None:
    """
    Add the gradient of every entry's value to `grad_value_N`.

    Args:
        near_only: Leave out the entries above 0: their gradients come with the decoder's (`triton_segments`).
    """
    num_tokens, num_columns = grad_out_TC.shape
    if not num_tokens or not active.value_N.shape[0]:
        return
    row_first = active.row_active_T if near_only else active.row_start_T1
    value_gradient_kernel[(num_tokens,)](
        row_first, active.row_start_T1[1:], active.feature_N, w_dec_FC, grad_out_TC, grad_value_N, num_columns,
        ROWS=_ROWS, COLUMNS=column_block(num_columns, _MOST_COLUMNS), num_warps=4,
    )  # fmt: skip
