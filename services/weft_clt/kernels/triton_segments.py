"""
Products by feature: every row of a gradient is the sum of the token rows that its feature took part in.

Entries are grouped by feature (`FeatureLists`), so a program owns one feature and one block of columns: no atomics, and
sums in float32 always in the order of the tokens. While a decoder row is at hand, the same pass takes the gradients of
the values, the squares for clipping, or Adam's update; with the update, the decoder's gradient never exists in memory.
Token rows are gathered, and mostly come from the second-level cache: T x C is small beside F x C.
Shapes: see `weft_clt.kernels.port`; B blocks of columns, N entries of one source layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from weft_clt.kernels.feature_lists import DecoderPairs, FeatureLists
from weft_clt.kernels.port import AdamStep
from weft_clt.kernels.triton_adam import adam_scalars, store_adam
from weft_clt.kernels.triton_numbers import jit, rounded
from weft_clt.kernels.triton_rows import column_block

__all__ = ["Source", "add_gradients", "add_segment_sums", "update_decoder", "value_gradients"]

_ROWS = 8
"""Token rows read at once."""
_MOST_COLUMNS = 1024
_NO_STEP = AdamStep(learning_rate=0.0, beta1=0.0, beta2=0.0, epsilon=1.0, step=1, grad_scale=1.0)


@jit
def segment_kernel(
    start: tl.tensor, row_end: tl.tensor, token: tl.tensor, value: tl.tensor, rows: tl.tensor, weight: tl.tensor,
    coeff: tl.tensor, value_part: tl.tensor, square_part: tl.tensor, grad: tl.tensor, first: tl.tensor,
    second: tl.tensor, num_features: tl.tensor, num_columns: tl.tensor, num_entries: tl.tensor,
    first_place: tl.tensor, seed: tl.tensor, grad_scale: tl.tensor, beta1: tl.tensor, rest1: tl.tensor,
    beta2: tl.tensor, rest2: tl.tensor, rate: tl.tensor, root: tl.tensor, epsilon: tl.tensor,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, VALUES: tl.constexpr, COEFF: tl.constexpr, SQUARES: tl.constexpr,
    ADD: tl.constexpr, FRESH: tl.constexpr, ADAM: tl.constexpr, HAS_FIRST: tl.constexpr,
) -> None:  # fmt: skip
    """
    The gradient of row f: the sum over its entries n of value[n] * rows[token[n]]; COEFF: plus coeff[f] * weight[f].

    VALUES: value_part[b, n] = weight[f] . rows[token[n]] over the columns of block b. SQUARES: keep its squared norm.
    ADD: add it to `grad` where it may be other than 0; FRESH: write it there instead, everywhere. ADAM: update `weight`
    by it.
    """
    feature = tl.program_id(0)
    block = tl.program_id(1)
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < num_columns
    begin, end = tl.load(start + feature), tl.load(row_end + feature)
    offset = feature.to(tl.int64) * num_columns + column
    touched = end > begin
    scale_own = 0.0
    if COEFF:
        scale_own = tl.load(coeff + feature).to(tl.float32)
        touched = touched | (scale_own != 0)
    own = tl.zeros([COLUMNS], dtype=tl.float32)
    if VALUES or COEFF:
        own = tl.load(weight + offset, mask=inside & touched, other=0.0).to(tl.float32)
    total = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    for first_entry in range(begin, end, ROWS):
        entry = first_entry + tl.arange(0, ROWS)
        listed = entry < end
        row = tl.load(token + entry, mask=listed, other=0).to(tl.int64) * num_columns
        scale = tl.load(value + entry, mask=listed, other=0.0).to(tl.float32)
        part = tl.load(rows + row[:, None] + column[None, :], mask=listed[:, None] & inside[None, :], other=0.0).to(
            tl.float32
        )
        total += scale[:, None] * part
        if VALUES:
            dot = tl.sum(part * own[None, :], 1)
            tl.store(value_part + block.to(tl.int64) * num_entries + entry, dot, mask=listed)
    result = tl.sum(total, 0)
    if COEFF:
        result += scale_own * own
    if SQUARES:
        tl.store(square_part + block.to(tl.int64) * num_features + feature, tl.sum(result * result, 0))
    if FRESH:
        tl.store(grad + offset, rounded(result, grad.dtype.element_ty), mask=inside)
    elif ADD:
        before = tl.load(grad + offset, mask=inside & touched, other=0.0).to(tl.float32)
        tl.store(grad + offset, rounded(before + result, grad.dtype.element_ty), mask=inside & touched)
    if ADAM:
        moves = inside & touched
        if HAS_FIRST:
            moves = inside
        store_adam(
            weight, first, second, result * grad_scale, offset, offset + first_place, inside, moves, seed,
            beta1, rest1, beta2, rest2, rate, root, epsilon, HAS_FIRST,
        )  # fmt: skip


@dataclass(frozen=True)
class Source:
    """Entries of one layer by feature; entries of a feature end where those of the next one begin."""

    start_F1: Tensor
    token_N: Tensor
    value_N: Tensor

    @classmethod
    def above(cls, lists: FeatureLists, layer: int) -> Source:
        """Return a layer's entries above 0, with places counted from its own first entry."""
        return cls._of(lists, layer, lists.start_LF1[layer])

    @classmethod
    def near(cls, lists: FeatureLists, layer: int) -> Source:
        """Return a layer's entries at 0, with places counted from its own first entry."""
        return cls._of(lists, layer, lists.near_LF1[layer])

    @classmethod
    def _of(cls, lists: FeatureLists, layer: int, start_F1: Tensor) -> Source:
        part = lists.part(layer)
        return cls(start_F1 - part.start, lists.token_N[part], lists.value_N[part])


def _run(
    source: Source,
    rows_TC: Tensor,
    *,
    weight_FC: Tensor | None = None,
    coeff_F: Tensor | None = None,
    value_part_BN: Tensor | None = None,
    square_part_BF: Tensor | None = None,
    added_FC: Tensor | None = None,
    fresh: bool = False,
    first_FC: Tensor | None = None,
    second_FC: Tensor | None = None,
    step: AdamStep = _NO_STEP,
) -> None:
    """
    Launch once; what is not given is not computed, and another tensor stands in for its address.

    Args:
        fresh: Write over what is in `added_FC`.
    """
    num_features, num_columns = source.start_F1.shape[0] - 1, rows_TC.shape[1]
    columns = column_block(num_columns, _MOST_COLUMNS)

    def given(tensor: Tensor | None) -> Tensor:
        return rows_TC if tensor is None else tensor

    segment_kernel[(num_features, triton.cdiv(num_columns, columns))](
        source.start_F1, source.start_F1[1:], source.token_N, source.value_N, rows_TC,
        given(weight_FC), given(coeff_F), given(value_part_BN), given(square_part_BF),
        given(added_FC), given(first_FC), given(second_FC),
        num_features, num_columns, source.token_N.shape[0], 0 if weight_FC is None else weight_FC.storage_offset(),
        **adam_scalars(step),
        ROWS=_ROWS, COLUMNS=columns, VALUES=value_part_BN is not None, COEFF=coeff_F is not None,
        SQUARES=square_part_BF is not None, ADD=added_FC is not None, FRESH=fresh,
        ADAM=second_FC is not None, HAS_FIRST=first_FC is not None, num_warps=4,
    )  # fmt: skip


def add_segment_sums(source: Source, rows_TC: Tensor, out_FC: Tensor) -> None:
    """Add to the rows of `out_FC` the token rows of their entries, times their values."""
    if source.token_N.shape[0]:
        _run(source, rows_TC, added_FC=out_FC)


def value_gradients(
    lists: FeatureLists,
    pairs: DecoderPairs,
    w_dec_PFC: Tensor,
    grad_out_LTC: Tensor,
    grad_slots: Tensor,
    near_LF: Tensor | None,
) -> float:
    """See `Kernels.value_grad_pass`, but for the bias."""
    num_columns, device = grad_out_LTC.shape[2], grad_out_LTC.device
    blocks = triton.cdiv(num_columns, column_block(num_columns, _MOST_COLUMNS))
    squares_BF = torch.empty(blocks, w_dec_PFC.shape[1], dtype=torch.float32, device=device)
    squares = torch.zeros((), dtype=torch.float64, device=device)
    if near_LF is not None:
        grad_slots.zero_()
    for index in range(len(lists.layers)):
        part, above, near = lists.part(index), Source.above(lists, index), Source.near(lists, index)
        num_entries = part.stop - part.start
        parts_BN = torch.empty(blocks, num_entries, dtype=torch.float32, device=device)
        total_N = torch.zeros(num_entries, dtype=torch.float32, device=device)
        for own, target, block in pairs.rows():
            if own == index and num_entries:
                rows_TC, weight_FC = grad_out_LTC[target], w_dec_PFC[block]
                _run(above, rows_TC, weight_FC=weight_FC, value_part_BN=parts_BN, square_part_BF=squares_BF)
                _run(near, rows_TC, weight_FC=weight_FC, value_part_BN=parts_BN)
                total_N += parts_BN.sum(0)
                squares += squares_BF.sum(dtype=torch.float64)
        slot_N = lists.slot_N[part].long()
        if near_LF is not None:
            end = int(near.start_F1[0])
            sums_F = torch.segment_reduce(total_N[end:], "sum", lengths=near.start_F1.diff().long())
            near_LF[index] = sums_F.to(near_LF.dtype)
            slot_N, total_N = slot_N[:end], total_N[:end]
        grad_slots[slot_N] = total_N.to(grad_slots.dtype)
    return float(squares)


def add_gradients(
    lists: FeatureLists,
    pairs: DecoderPairs,
    w_dec_PFC: Tensor,
    grad_out_LTC: Tensor,
    coeff_LF: Tensor,
    grad_w_dec_PFC: Tensor,
    *,
    fresh: bool,
) -> None:
    """See `Kernels.decoder_gradient`."""
    sources = [Source.above(lists, layer) for layer in range(len(lists.layers))]
    for own, target, block in pairs.rows():
        _run(
            sources[own], grad_out_LTC[target], weight_FC=w_dec_PFC[block], coeff_F=coeff_LF[own],
            added_FC=grad_w_dec_PFC[block], fresh=fresh,
        )  # fmt: skip


def update_decoder(
    lists: FeatureLists,
    pairs: DecoderPairs,
    w_dec_PFC: Tensor,
    grad_out_LTC: Tensor,
    coeff_LF: Tensor,
    first_PFC: Tensor | None,
    second_PFC: Tensor,
    step: AdamStep,
) -> None:
    """
    See `Kernels.decoder_adam`.

    Where beta1 is 0, rows without a gradient are neither read nor written: Adam leaves them as they are, and only their
    second moment decays.
    """
    sources = [Source.above(lists, layer) for layer in range(len(lists.layers))]
    for own, target, block in pairs.rows():
        _run(
            sources[own], grad_out_LTC[target], weight_FC=w_dec_PFC[block], coeff_F=coeff_LF[own],
            first_FC=None if first_PFC is None else first_PFC[block], second_FC=second_PFC[block], step=step,
        )  # fmt: skip
