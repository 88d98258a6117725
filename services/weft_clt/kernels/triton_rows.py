"""
Decode: the rows of a token's features, gathered from the decoder blocks of all sources of a target.

A program takes one target, one token and one block of columns, and reads several rows at once so that memory stays
busy. It goes through the sources itself: the sum is in float32 whatever the types, always in the same order, and
written once. Programs of one column block run together, so that rows which many tokens share are still in the
second-level cache.
Addresses are 64 bit: P x F x C passes 2^31.
Shapes: see `weft_clt.kernels.port`.
"""

from __future__ import annotations

from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor

from weft_clt.kernels.feature_lists import DecoderPairs, FeatureLists
from weft_clt.kernels.triton_numbers import jit, rounded

__all__ = ["column_block", "decode_all"]

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
    pair_start: tl.tensor, pairs: tl.tensor, row_start: tl.tensor, row_active: tl.tensor, feature: tl.tensor,
    value: tl.tensor, weight: tl.tensor, bias: tl.tensor, target_rows: tl.tensor, out: tl.tensor,
    num_tokens: tl.tensor, num_features: tl.tensor, num_columns: tl.tensor,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
) -> None:  # fmt: skip
    """out[target, t] = bias[target] - target_rows[target, t] + sum of value[n] * weight[block, feature[n]]."""
    token = tl.program_id(0) % num_tokens
    target = tl.program_id(0) // num_tokens
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < num_columns
    total = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    for pair in range(tl.load(pair_start + target), tl.load(pair_start + target + 1)):
        source, block = tl.load(pairs + 3 * pair), tl.load(pairs + 3 * pair + 2)
        start = tl.load(row_start + source * (num_tokens + 1) + token)
        end = tl.load(row_active + source * num_tokens + token)
        for first in range(start, end, ROWS):
            entry = first + tl.arange(0, ROWS)
            listed = entry < end
            row = (block * num_features + tl.load(feature + entry, mask=listed, other=0)) * num_columns
            scale = tl.load(value + entry, mask=listed, other=0.0).to(tl.float32)
            part = tl.load(
                weight + row[:, None] + column[None, :], mask=listed[:, None] & inside[None, :], other=0.0
            ).to(tl.float32)
            total += scale[:, None] * part
    offset = tl.program_id(0).to(tl.int64) * num_columns + column
    start_value = tl.load(bias + target * num_columns + column, mask=inside, other=0.0).to(tl.float32)
    start_value -= tl.load(target_rows + offset, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + offset, rounded(start_value + tl.sum(total, 0), out.dtype.element_ty), mask=inside)


def decode_all(
    lists: FeatureLists,
    pairs: DecoderPairs,
    w_dec_PFC: Tensor,
    b_dec_LC: Tensor,
    targets_LTC: Tensor,
    error_LTC: Tensor,
) -> None:
    """See `Kernels.decode_pass`; the types of the tensors may differ."""
    num_layers, num_tokens, num_columns = error_LTC.shape
    if not num_tokens:
        return
    device, layers = error_LTC.device, lists.layers
    firsts = [0, *accumulate(layer.value_N.shape[0] for layer in layers[:-1])]
    row_start = torch.stack([layer.row_start_T1 + first for layer, first in zip(layers, firsts, strict=True)])
    row_active = torch.stack([layer.row_active_T + first for layer, first in zip(layers, firsts, strict=True)])
    counts_L = torch.bincount(pairs.pairs_P3[:, 1], minlength=num_layers)
    pair_start = torch.cat([counts_L.new_zeros(1), counts_L.cumsum(0)]).to(device, non_blocking=True)
    columns = column_block(num_columns, _MOST_COLUMNS)
    decode_kernel[(num_layers * num_tokens, triton.cdiv(num_columns, columns))](
        pair_start, pairs.pairs_P3.to(device, non_blocking=True), row_start, row_active,
        torch.cat([layer.feature_N for layer in layers]), torch.cat([layer.value_N for layer in layers]),
        w_dec_PFC, b_dec_LC, targets_LTC, error_LTC, num_tokens, layers[0].num_features, num_columns,
        ROWS=_ROWS, COLUMNS=columns, num_warps=4,
    )  # fmt: skip
