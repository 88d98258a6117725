"""
The kernels in Triton, for CUDA devices.

Under TRITON_INTERPRET=1, which must be set before the first import of Triton, they run on the CPU, slowly.
Shapes: see `weft_clt.kernels.port`; M entries of this rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from weft_clt.active import ActiveLayer
from weft_clt.kernels import sorted_lists, triton_adam, triton_reductions, triton_rows, triton_segments
from weft_clt.kernels.feature_lists import DecoderPairs, FeatureLists
from weft_clt.kernels.port import AdamStep
from weft_clt.kernels.triton_encode import Encoder
from weft_clt.kernels.triton_top_k import keep_largest

__all__ = ["TritonKernels"]


class TritonKernels:
    """
    Float32 and bfloat16, also mixed: sums are in float32, and every result is deterministic.

    Args:
        encoder: By default tiles are chosen by the type.
    """

    def __init__(self, encoder: Encoder | None = None) -> None:
        self._encoder = encoder or Encoder()

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
        device, num_tokens = counts_RT.device, counts_RT.shape[1]
        lengths = [int(feature_N.shape[0]) for feature_N in features_R]
        token_N = torch.cat(
            [sorted_lists.entry_tokens(counts_T, num) for counts_T, num in zip(counts_RT, lengths, strict=True)]
        )
        slot_N = torch.cat(
            [torch.arange(start, start + num, device=device) for start, num in zip(slot_starts_R, lengths, strict=True)]
        )
        entries = token_N, torch.cat(features_R).long(), torch.cat(values_R), slot_N
        if top_k:
            order_N = torch.argsort(token_N, stable=True)
            token_N, feature_N, value_N, slot_N = (each[order_N] for each in entries)
            keep_N, _ = keep_largest(sorted_lists.segment_starts(token_N, num_tokens), value_N, top_k)
            entries = token_N[keep_N], feature_N[keep_N], value_N[keep_N], slot_N[keep_N]
        return sorted_lists.joined(*entries, num_tokens, num_features)

    def encode(
        self,
        inputs_TD: Tensor,
        w_enc_SD: Tensor,
        b_enc_S: Tensor,
        bound_S: Tensor | None,
        top_k: int,
        preact_TS: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        if bound_S is None:
            return self._encoder.largest(inputs_TD, w_enc_SD, b_enc_S, top_k, preact_TS)
        return self._encoder.above(inputs_TD, w_enc_SD, b_enc_S, bound_S, preact_TS)

    def decode_pass(
        self,
        lists: FeatureLists,
        pairs: DecoderPairs,
        w_dec_PFC: Tensor,
        b_dec_LC: Tensor,
        targets_LTC: Tensor,
        error_LTC: Tensor,
    ) -> None:
        triton_rows.decode_all(lists, pairs, w_dec_PFC, b_dec_LC, targets_LTC, error_LTC)

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
        grad_b_dec_LC.copy_(grad_out_LTC.sum(1, dtype=torch.float32))
        return triton_segments.value_gradients(lists, pairs, w_dec_PFC, grad_out_LTC, grad_slots, near_LF)

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
        triton_segments.update_decoder(lists, pairs, w_dec_PFC, grad_out_LTC, coeff_LF, first_PFC, second_PFC, step)

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
        triton_segments.add_gradients(lists, pairs, w_dec_PFC, grad_out_LTC, coeff_LF, grad_w_dec_PFC, fresh=fresh)

    def encode_backward(
        self, counts_T: Tensor, feature_M: Tensor, grad_preact_M: Tensor, inputs_TD: Tensor, grad_w_enc_SD: Tensor
    ) -> None:
        sorted_M, order_M = torch.sort(feature_M, stable=True)
        token_M = sorted_lists.entry_tokens(counts_T, feature_M.shape[0])
        start_S1 = sorted_lists.segment_starts(sorted_M, grad_w_enc_SD.shape[0])
        source = triton_segments.Source(start_S1, token_M[order_M].int(), grad_preact_M[order_M])
        triton_segments.add_segment_sums(source, inputs_TD, grad_w_enc_SD)

    def add_row_squares(self, w_FC: Tensor, out_F: Tensor) -> None:
        triton_reductions.add_row_squares(w_FC, out_F)

    def sum_squares(self, values: Tensor) -> float:
        return triton_reductions.sum_squares(values)

    def adam(self, param: Tensor, grad: Tensor, first: Tensor | None, second: Tensor, step: AdamStep) -> None:
        triton_adam.update(param, grad, first, second, step)
