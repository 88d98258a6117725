"""
The kernels as compiled loops over NumPy views of the tensors.

Shapes: see `weft_clt.kernels.port`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weft_clt.active import ActiveLayer
from weft_clt.kernels import loops, panel_loops
from weft_clt.kernels.dithering import rounds
from weft_clt.kernels.feature_lists import DecoderPairs, FeatureLists
from weft_clt.kernels.port import AdamStep
from weft_clt.kernels.threads import Buffers, Workers, column_runs

__all__ = ["CpuKernels"]

_PREACT_BYTES = 8 << 20  # of pre-activations at a time; they are read again while they are in the last-level cache
_WIDE_ELEMENTS = 1 << 16  # of bfloat16 rows, widened at a time to be squared
_FEWEST_ROWS = 256  # below that, a matrix product spends its time on laying out the weights


class CpuKernels:
    """
    Compiled loops; float32 and float64, weights and Adam's moments also in bfloat16 (`dithering`).

    Args:
        num_threads: By default as many as torch uses.
    """

    def __init__(self, num_threads: int | None = None) -> None:
        self._workers = Workers(num_threads or torch.get_num_threads())
        self._buffers = Buffers()

    def merge(
        self,
        counts_RT: Tensor,
        features_R: list[Tensor],
        values_R: list[Tensor],
        slot_starts_R: list[int],
        *,
        num_features: int,
        top_k: int,
    ) -> ActiveLayer:
        num_tokens = counts_RT.shape[1]
        lengths = [int(feature_N.shape[0]) for feature_N in features_R]
        starts_R = np.cumsum([0, *lengths[:-1]])
        feature = features_R[0] if len(features_R) == 1 else torch.cat(features_R)
        value = values_R[0] if len(values_R) == 1 else torch.cat(values_R)
        total = sum(lengths)
        row_start_T1 = torch.empty(num_tokens + 1, dtype=torch.int32)
        row_active_T = torch.empty(num_tokens, dtype=torch.int32)
        feature_N = torch.empty(total, dtype=torch.int32)
        value_N = torch.empty(total, dtype=value.dtype)
        slot_N = torch.empty(total, dtype=torch.int32)
        kept = loops.merge_entries(
            counts_RT.numpy(), feature.numpy(), value.numpy(), starts_R, top_k,
            row_start_T1.numpy(), row_active_T.numpy(), feature_N.numpy(), value_N.numpy(), slot_N.numpy(),
        )  # fmt: skip
        feature_N, value_N, slot_N = feature_N[:kept], value_N[:kept], slot_N[:kept]
        offsets_R = np.asarray(slot_starts_R, dtype=np.int64) - starts_R
        slots = slot_N.numpy()
        slots += offsets_R[np.searchsorted(starts_R, slots, side="right") - 1].astype(np.int32)
        return ActiveLayer(
            num_features=num_features,
            row_start_T1=row_start_T1,
            row_active_T=row_active_T,
            feature_N=feature_N,
            value_N=value_N,
            slot_N=slot_N,
        )

    def encode(
        self,
        inputs_TD: Tensor,
        w_enc_SD: Tensor,
        b_enc_S: Tensor,
        bound_S: Tensor | None,
        top_k: int,
        preact_TS: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        num_tokens, num_features = inputs_TD.shape[0], w_enc_SD.shape[0]
        w_enc_SD = self._wide("encoder", w_enc_SD, inputs_TD)
        rows = max(_FEWEST_ROWS, _PREACT_BYTES // (num_features * w_enc_SD.itemsize))
        kept = min(top_k, num_features)
        room = num_tokens * (kept if bound_S is None else min(num_features, 64))
        counts_T = torch.empty(num_tokens, dtype=torch.int32)
        feature_M = torch.empty(room, dtype=torch.int64)
        value_M = torch.empty(room, dtype=w_enc_SD.dtype)
        end = 0
        for first in range(0, num_tokens, rows):
            chunk_RD = inputs_TD[first : first + rows]
            if preact_TS is None:
                size = chunk_RD.shape[0] * num_features
                held = self._buffers.get("preact", 0, size, value_M.numpy().dtype)
                preact_RS = torch.from_numpy(held).view(-1, num_features)
            else:
                preact_RS = preact_TS[first : first + rows]
            torch.addmm(b_enc_S, chunk_RD, w_enc_SD.T, out=preact_RS)
            preact, counts = preact_RS.numpy(), counts_T[first : first + rows].numpy()
            if bound_S is None:
                end = int(loops.select_top(preact, kept, counts, feature_M.numpy(), value_M.numpy(), end))
                continue
            bound, start = bound_S.numpy(), end
            end = int(loops.select_above(preact, bound, counts, feature_M.numpy(), value_M.numpy(), start))
            if end > feature_M.shape[0]:
                # What the tokens so far took tells what all of them will.
                wanted = math.ceil(end * num_tokens / (first + chunk_RD.shape[0]))
                feature_M, value_M = _roomier(feature_M, start, wanted), _roomier(value_M, start, wanted)
                loops.select_above(preact, bound, counts, feature_M.numpy(), value_M.numpy(), start)
        return counts_T, feature_M[:end], value_M[:end]

    def decode_pass(
        self,
        lists: FeatureLists,
        pairs: DecoderPairs,
        w_dec_PFC: Tensor,
        b_dec_LC: Tensor,
        targets_LTC: Tensor,
        error_LTC: Tensor,
    ) -> None:
        runs, entries = self._runs(error_LTC), _entries(lists)

        def work(run: int) -> None:
            panel_loops.decode_loop(
                *runs[run], pairs.pairs_P3.numpy(), *entries, _held(w_dec_PFC), b_dec_LC.numpy(),
                targets_LTC.numpy(), error_LTC.numpy(), self._panels(run, *runs[run], error_LTC),
            )  # fmt: skip

        self._workers.each(work, len(runs))

    def value_grad_pass(
        self,
        lists: FeatureLists,
        pairs: DecoderPairs,
        w_dec_PFC: Tensor,
        grad_out_LTC: Tensor,
        grad_slots: Tensor,
        grad_b_dec_LC: Tensor,
        near_LF: Tensor | None = None,
    ) -> float:
        runs, (start, token, value) = self._runs(grad_out_LTC), _entries(lists)
        parts = [self._buffers.get("dots", run, value.shape[0], value.dtype) for run in range(len(runs))]
        shape = (0, 0) if near_LF is None else near_LF.shape
        nears = [np.zeros(shape, value.dtype) for _ in runs]

        def work(run: int) -> float:
            return panel_loops.value_grad_loop(
                *runs[run], pairs.pairs_P3.numpy(), start, lists.near_LF1.numpy(), token, value, _held(w_dec_PFC),
                grad_out_LTC.numpy(), parts[run], nears[run], self._panels(run, *runs[run], grad_out_LTC),
            )  # fmt: skip

        torch.sum(grad_out_LTC, 1, out=grad_b_dec_LC)
        squares = sum(self._workers.each(work, len(runs)))
        for part in parts[1:]:
            parts[0] += part
        slot, slots = lists.slot_N.numpy(), grad_slots.numpy()
        if near_LF is None:
            loops.to_slots(slot, parts[0], slots)
            return float(squares)
        near_LF.copy_(torch.from_numpy(sum(nears[1:], start=nears[0])))
        slots[:] = 0
        for start_F1 in start:
            above = slice(start_F1[0], start_F1[-1])
            loops.to_slots(slot[above], parts[0][above], slots)
        return float(squares)

    def decoder_adam(
        self,
        lists: FeatureLists,
        pairs: DecoderPairs,
        w_dec_PFC: Tensor,
        grad_out_LTC: Tensor,
        coeff_LF: Tensor,
        first_PFC: Tensor | None,
        second_PFC: Tensor,
        step: AdamStep,
    ) -> None:
        runs, entries = self._runs(grad_out_LTC), _entries(lists)
        weight, second = _held(w_dec_PFC), _held(second_PFC)
        first = weight if first_PFC is None else _held(first_PFC)
        scalars = np.array(_scalars(step), dtype=grad_out_LTC.numpy().dtype)

        def work(run: int) -> None:
            panel_loops.adam_loop(
                *runs[run], pairs.pairs_P3.numpy(), *entries, grad_out_LTC.numpy(), coeff_LF.numpy(), weight, first,
                second, first_PFC is not None, scalars, step.step, self._panels(run, *runs[run], grad_out_LTC),
            )  # fmt: skip

        self._workers.each(work, len(runs))

    def decoder_gradient(
        self,
        lists: FeatureLists,
        pairs: DecoderPairs,
        w_dec_PFC: Tensor,
        grad_out_LTC: Tensor,
        coeff_LF: Tensor,
        grad_w_dec_PFC: Tensor,
        *,
        fresh: bool = False,
    ) -> None:
        runs, entries = self._runs(grad_out_LTC), _entries(lists)

        def work(run: int) -> None:
            panel_loops.gradient_loop(
                *runs[run], pairs.pairs_P3.numpy(), *entries, grad_out_LTC.numpy(), coeff_LF.numpy(),
                _held(w_dec_PFC), grad_w_dec_PFC.numpy(), fresh, self._panels(run, *runs[run], grad_out_LTC),
            )  # fmt: skip

        self._workers.each(work, len(runs))

    def _runs(self, matrix_LTC: Tensor) -> list[tuple[int, int]]:
        return column_runs(matrix_LTC.shape[2], matrix_LTC.itemsize, self._workers.num_threads)

    def _panels(self, run: int, low: int, high: int, matrix_LTC: Tensor) -> NDArray[Any]:
        return self._buffers.get("panels", run, matrix_LTC.shape[1] * (high - low), matrix_LTC.numpy().dtype)

    def encode_backward(
        self, counts_T: Tensor, feature_M: Tensor, grad_preact_M: Tensor, inputs_TD: Tensor, grad_w_enc_SD: Tensor
    ) -> None:
        loops.encode_grad_loop(
            counts_T.numpy(), feature_M.numpy(), grad_preact_M.numpy(), inputs_TD.numpy(), grad_w_enc_SD.numpy()
        )

    def add_row_squares(self, w_FC: Tensor, out_F: Tensor) -> None:
        rows = max(1, _WIDE_ELEMENTS // w_FC.shape[1]) if w_FC.dtype is torch.bfloat16 else w_FC.shape[0]
        for first in range(0, w_FC.shape[0], rows):
            part = slice(first, first + rows)
            loops.row_squares_loop(self._wide("rows", w_FC[part], out_F).numpy(), out_F[part].numpy())

    def sum_squares(self, values: Tensor) -> float:
        return float(loops.sum_squares_loop(values.view(-1).numpy()))

    def adam(self, param: Tensor, grad: Tensor, first: Tensor | None, second: Tensor, step: AdamStep) -> None:
        if rounds(param, grad, second):
            self._rounded_adam(param.view(-1), grad.view(-1), first, second.view(-1), step)
            return
        real = param.numpy().dtype.type
        flat_param, flat_grad, flat_second = (tensor.view(-1).numpy() for tensor in (param, grad, second))
        scale, beta1, beta2, rest1, rest2, rate, root, epsilon = (real(scalar) for scalar in _scalars(step))
        if first is None:
            loops.adam_without_first_loop(flat_param, flat_grad, flat_second, scale, beta2, rest2, rate, root, epsilon)
            return
        loops.adam_loop(
            flat_param, flat_grad, first.view(-1).numpy(), flat_second,
            scale, beta1, beta2, rest1, rest2, rate, root, epsilon,
        )  # fmt: skip

    def _rounded_adam(
        self, param_N: Tensor, grad_N: Tensor, first: Tensor | None, second_N: Tensor, step: AdamStep
    ) -> None:
        param, grad, second = _held(param_N), grad_N.numpy(), _held(second_N)
        held_first = param if first is None else _held(first.view(-1))
        scalars, before = np.array(_scalars(step), dtype=grad.dtype), int(param_N.storage_offset())
        runs = column_runs(grad_N.shape[0], grad_N.itemsize, self._workers.num_threads)

        def work(run: int) -> None:
            panel_loops.adam_flat_loop(
                *runs[run], param, grad, held_first, second, first is not None, scalars, before, step.step
            )

        self._workers.each(work, len(runs))

    def _wide(self, name: str, kept: Tensor, like: Tensor) -> Tensor:
        """Return bfloat16 weights in another tensor's type, in a buffer of this name; others as they are."""
        if kept.dtype is not torch.bfloat16:
            return kept
        held = torch.from_numpy(self._buffers.get(name, 0, kept.numel(), like.numpy().dtype))
        return held.view(kept.shape).copy_(kept)


def _held(kept: Tensor) -> NDArray[Any]:
    """Return weights or moments as what `panel_rows` reads: those of bfloat16 as their bits."""
    held: NDArray[Any] = (kept.view(torch.int16) if kept.dtype is torch.bfloat16 else kept).numpy()
    return held


def _scalars(step: AdamStep) -> tuple[float, ...]:
    """Return what `loops.adam_loop` takes, in its order."""
    rate = step.learning_rate / (1 - step.beta1**step.step)
    root = (1 - step.beta2**step.step) ** -0.5
    return step.grad_scale, step.beta1, step.beta2, 1 - step.beta1, 1 - step.beta2, rate, root, step.epsilon


def _roomier(held_M: Tensor, used: int, room: int) -> Tensor:
    """Move the first elements to a longer list, whose rest takes no memory until it is written to."""
    longer_M = held_M.new_empty(room)
    longer_M[:used] = held_M[:used]
    return longer_M


def _entries(lists: FeatureLists) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    return lists.start_LF1.numpy(), lists.token_N.numpy(), lists.value_N.numpy()
