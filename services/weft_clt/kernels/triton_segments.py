"""
Products by feature: every row of a gradient is the sum of the token rows that its feature took part in.

Entries are grouped by feature (`triton_lists`), so a program owns one feature and one block of columns: no atomics, and
sums in float32 always in the order of the tokens. While a decoder row is at hand, the same pass takes the gradients of
the values, the squares for clipping, or Adam's update; with the update, the decoder's gradient never exists in memory.
Token rows are gathered, and mostly come from the second-level cache: T x C is small beside F x C.
Shapes: see `weft_clt.kernels.port`; B blocks of columns, A entries above 0.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from weft_clt.active import ActiveLayer
from weft_clt.kernels.port import AdamStep
from weft_clt.kernels.triton_adam import adam_scalars, store_adam
from weft_clt.kernels.triton_lists import entries_by_feature
from weft_clt.kernels.triton_numbers import jit, rounded
from weft_clt.kernels.triton_rows import add_value_gradients, column_block

__all__ = ["add_segment_sums", "decoder_gradients", "decoder_squares", "decoder_update"]

_ROWS = 8
"""Token rows read at once."""
_MOST_COLUMNS = 1024
_NO_STEP = AdamStep(learning_rate=0.0, beta1=0.0, beta2=0.0, epsilon=1.0, step=1, grad_scale=1.0)


@jit
def segment_kernel(
    start: tl.tensor, token: tl.tensor, value: tl.tensor, rows: tl.tensor, weight: tl.tensor, coeff: tl.tensor,
    value_part: tl.tensor, square_part: tl.tensor, grad: tl.tensor, first: tl.tensor, second: tl.tensor,
    num_features: tl.tensor, num_columns: tl.tensor, num_entries: tl.tensor, first_place: tl.tensor,
    seed: tl.tensor, grad_scale: tl.tensor, beta1: tl.tensor, rest1: tl.tensor, beta2: tl.tensor,
    rest2: tl.tensor, rate: tl.tensor, root: tl.tensor, epsilon: tl.tensor,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, VALUES: tl.constexpr, COEFF: tl.constexpr, SQUARES: tl.constexpr,
    STORE: tl.constexpr, ADD: tl.constexpr, ADAM: tl.constexpr, HAS_FIRST: tl.constexpr,
) -> None:  # fmt: skip
    """
    The gradient of row f: the sum over its entries n of value[n] * rows[token[n]]; COEFF: plus coeff[f] * weight[f].

    VALUES: value_part[b, n] = weight[f] . rows[token[n]] over the columns of block b. SQUARES: keep its squared norm.
    STORE: write it to `grad`. ADD: add it to `grad` where the feature has entries. ADAM: update `weight` by it.
    """
    feature = tl.program_id(0)
    block = tl.program_id(1)
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < num_columns
    begin, end = tl.load(start + feature), tl.load(start + feature + 1)
    offset = feature.to(tl.int64) * num_columns + column
    own = tl.zeros([COLUMNS], dtype=tl.float32)
    if VALUES or COEFF:
        own = tl.load(weight + offset, mask=inside & ((end > begin) | COEFF), other=0.0).to(tl.float32)
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
            tl.store(value_part + block.to(tl.int64) * num_entries + entry, tl.sum(part * own[None, :], 1), mask=listed)
    result = tl.sum(total, 0)
    if COEFF:
        result += tl.load(coeff + feature).to(tl.float32) * own
    if SQUARES:
        tl.store(square_part + block.to(tl.int64) * num_features + feature, tl.sum(result * result, 0))
    if STORE:
        tl.store(grad + offset, rounded(result, grad.dtype.element_ty), mask=inside)
    if ADD:
        touched = inside & (end > begin)
        before = tl.load(grad + offset, mask=touched, other=0.0).to(tl.float32)
        tl.store(grad + offset, rounded(before + result, grad.dtype.element_ty), mask=touched)
    if ADAM:
        moves = inside & ((end > begin) | COEFF | HAS_FIRST)
        store_adam(
            weight, first, second, result * grad_scale, offset, offset + first_place, inside, moves, seed,
            beta1, rest1, beta2, rest2, rate, root, epsilon, HAS_FIRST,
        )  # fmt: skip


def _run(
    start_F1: Tensor,
    token_A: Tensor,
    value_A: Tensor,
    rows_TC: Tensor,
    *,
    weight_FC: Tensor | None = None,
    coeff_F: Tensor | None = None,
    value_part_BA: Tensor | None = None,
    square_part_BF: Tensor | None = None,
    stored_FC: Tensor | None = None,
    added_FC: Tensor | None = None,
    first_FC: Tensor | None = None,
    second_FC: Tensor | None = None,
    step: AdamStep | None = None,
) -> None:
    """One launch; what is not given is not computed, and any tensor stands in for its address."""
    num_features, num_columns = start_F1.shape[0] - 1, rows_TC.shape[1]
    columns = column_block(num_columns, _MOST_COLUMNS)

    def given(tensor: Tensor | None) -> Tensor:
        return rows_TC if tensor is None else tensor

    segment_kernel[(num_features, triton.cdiv(num_columns, columns))](
        start_F1, token_A, value_A, rows_TC, given(weight_FC), given(coeff_F), given(value_part_BA),
        given(square_part_BF), given(stored_FC if added_FC is None else added_FC), given(first_FC), given(second_FC),
        num_features, num_columns, token_A.shape[0], 0 if weight_FC is None else weight_FC.storage_offset(),
        **adam_scalars(step or _NO_STEP),
        ROWS=_ROWS, COLUMNS=columns, VALUES=value_part_BA is not None, COEFF=coeff_F is not None,
        SQUARES=square_part_BF is not None, STORE=stored_FC is not None, ADD=added_FC is not None,
        ADAM=second_FC is not None, HAS_FIRST=first_FC is not None, num_warps=4,
    )  # fmt: skip


def _value_parts(active: ActiveLayer, num_columns: int) -> Tensor:
    blocks = triton.cdiv(num_columns, column_block(num_columns, _MOST_COLUMNS))
    num_active = active.column_token_A.shape[0]
    return torch.empty(blocks, num_active, dtype=torch.float32, device=active.value_N.device)


def _add_value_parts(active: ActiveLayer, value_part_BA: Tensor, grad_value_N: Tensor) -> None:
    """Every entry is met once, so this is an assignment and not a race."""
    entry_A = entries_by_feature(active).long()
    grad_value_N[entry_A] = (grad_value_N[entry_A].float() + value_part_BA.sum(0)).to(grad_value_N.dtype)


def add_segment_sums(start_S1: Tensor, token_M: Tensor, value_M: Tensor, rows_TC: Tensor, out_SC: Tensor) -> None:
    """Add to the rows of `out_SC` the token rows of their entries, times their values."""
    if token_M.shape[0]:
        _run(start_S1, token_M, value_M, rows_TC, added_FC=out_SC)


def decoder_gradients(
    active: ActiveLayer, w_dec_FC: Tensor, grad_out_TC: Tensor, grad_value_N: Tensor, grad_w_dec_FC: Tensor
) -> None:
    """See `Kernels.decode_backward`."""
    parts_BA = _value_parts(active, grad_out_TC.shape[1])
    _run(
        active.column_start_F1, active.column_token_A, active.column_value_A, grad_out_TC,
        weight_FC=w_dec_FC, value_part_BA=parts_BA, stored_FC=grad_w_dec_FC,
    )  # fmt: skip
    _add_value_parts(active, parts_BA, grad_value_N)
    add_value_gradients(active, w_dec_FC, grad_out_TC, grad_value_N, near_only=True)


def decoder_squares(
    active: ActiveLayer, w_dec_FC: Tensor, grad_out_TC: Tensor, coeff_F: Tensor | None, grad_value_N: Tensor
) -> Tensor:
    """
    Add the gradient of every entry's value to `grad_value_N`, and leave only the norm of the decoder's gradient.

    Args:
        coeff_F: What of its row is added to a row's gradient: that of the norms.

    Returns:
        The squared norm of the block's gradient, float64, on the device.
    """
    parts_BA = _value_parts(active, grad_out_TC.shape[1])
    squares_BF = torch.empty(parts_BA.shape[0], active.num_features, dtype=torch.float32, device=parts_BA.device)
    _run(
        active.column_start_F1, active.column_token_A, active.column_value_A, grad_out_TC,
        weight_FC=w_dec_FC, coeff_F=coeff_F, value_part_BA=parts_BA, square_part_BF=squares_BF,
    )  # fmt: skip
    _add_value_parts(active, parts_BA, grad_value_N)
    add_value_gradients(active, w_dec_FC, grad_out_TC, grad_value_N, near_only=True)
    return squares_BF.sum(dtype=torch.float64)


def decoder_update(
    active: ActiveLayer,
    w_dec_FC: Tensor,
    grad_out_TC: Tensor,
    coeff_F: Tensor | None,
    first_FC: Tensor | None,
    second_FC: Tensor,
    step: AdamStep,
) -> None:
    """
    Update a decoder block by its gradient, which is never written; equal to `decode_backward`, then `adam`.

    For one group of ranks: over a data axis the gradient has to be summed before it is used.

    Args:
        coeff_F: As in `decoder_squares`.
        first_FC: None where beta1 is 0; rows without entries are then neither read nor written, which changes nothing.
    """
    _run(
        active.column_start_F1, active.column_token_A, active.column_value_A, grad_out_TC,
        weight_FC=w_dec_FC, coeff_F=coeff_F, first_FC=first_FC, second_FC=second_FC, step=step,
    )  # fmt: skip
