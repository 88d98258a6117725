"""
The kernels in Triton, for CUDA devices.

Under TRITON_INTERPRET=1, which must be set before the first import of Triton, they run on the CPU, slowly.

Beyond the port they encode without a dense matrix (`Encoder`) and update a decoder in the pass that takes its gradient
(`decoder_squares`, `decoder_update` of `triton_segments`).
Shapes: see `weft_clt.kernels.port`; M entries of this rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from weft_clt.active import ActiveLayer
from weft_clt.kernels import triton_adam, triton_reductions, triton_rows, triton_segments
from weft_clt.kernels.port import AdamStep
from weft_clt.kernels.triton_lists import entry_tokens, merge_lists, segment_starts

__all__ = ["TritonKernels"]


class TritonKernels:
    """Float32 and bfloat16, also mixed: sums are in float32, and deterministic."""

    name = "triton"

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
        return merge_lists(counts_RT, features_R, values_R, slot_starts_R, num_features=num_features, top_k=top_k)

    def decode(self, active: ActiveLayer, w_dec_FC: Tensor, out_TC: Tensor) -> None:
        triton_rows.add_decoded(active, w_dec_FC, out_TC)

    def decode_backward(
        self, active: ActiveLayer, w_dec_FC: Tensor, grad_out_TC: Tensor, grad_value_N: Tensor, grad_w_dec_FC: Tensor
    ) -> None:
        triton_segments.decoder_gradients(active, w_dec_FC, grad_out_TC, grad_value_N, grad_w_dec_FC)

    def encode_backward(
        self, counts_T: Tensor, feature_M: Tensor, grad_preact_M: Tensor, inputs_TD: Tensor, grad_w_enc_SD: Tensor
    ) -> None:
        sorted_M, order_M = torch.sort(feature_M, stable=True)
        token_M = entry_tokens(counts_T, feature_M.shape[0])
        triton_segments.add_segment_sums(
            segment_starts(sorted_M, grad_w_enc_SD.shape[0]),
            token_M[order_M].int(),
            grad_preact_M[order_M],
            inputs_TD,
            grad_w_enc_SD,
        )

    def add_row_squares(self, w_FC: Tensor, out_F: Tensor) -> None:
        triton_reductions.add_row_squares(w_FC, out_F)

    def add_scaled_rows(self, coeff_F: Tensor, w_FC: Tensor, out_FC: Tensor) -> None:
        triton_reductions.add_scaled_rows(coeff_F, w_FC, out_FC)

    def sum_squares(self, values: Tensor) -> float:
        return triton_reductions.sum_squares(values)

    def adam(self, param: Tensor, grad: Tensor, first: Tensor | None, second: Tensor, step: AdamStep) -> None:
        triton_adam.update(param, grad, first, second, step)
