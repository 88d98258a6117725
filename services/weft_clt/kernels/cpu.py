"""
The kernels as compiled loops over NumPy views of the tensors.

Shapes: see `weft_clt.kernels.port`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from weft_clt.active import ActiveLayer
from weft_clt.kernels import loops, vector_loops
from weft_clt.kernels.port import AdamStep

__all__ = ["CpuKernels"]


class CpuKernels:
    """One thread; float32 and float64."""

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
        active = int((row_active_T - row_start_T1[:-1]).sum())
        column_start_F1 = torch.empty(num_features + 1, dtype=torch.int32)
        column_token_A = torch.empty(active, dtype=torch.int32)
        column_value_A = torch.empty(active, dtype=value.dtype)
        loops.column_lists(
            row_start_T1.numpy(), row_active_T.numpy(), feature_N.numpy(), value_N.numpy(),
            column_start_F1.numpy(), column_token_A.numpy(), column_value_A.numpy(),
        )  # fmt: skip
        return ActiveLayer(
            num_features=num_features,
            row_start_T1=row_start_T1,
            row_active_T=row_active_T,
            feature_N=feature_N,
            value_N=value_N,
            slot_N=slot_N,
            column_start_F1=column_start_F1,
            column_token_A=column_token_A,
            column_value_A=column_value_A,
        )

    def decode(self, active: ActiveLayer, w_dec_FC: Tensor, out_TC: Tensor) -> None:
        vector_loops.decode_loop(
            active.row_start_T1.numpy(), active.row_active_T.numpy(), active.feature_N.numpy(),
            active.value_N.numpy(), w_dec_FC.numpy(), out_TC.numpy(),
        )  # fmt: skip

    def decode_backward(
        self, active: ActiveLayer, w_dec_FC: Tensor, grad_out_TC: Tensor, grad_value_N: Tensor, grad_w_dec_FC: Tensor
    ) -> None:
        grad_out = grad_out_TC.numpy()
        vector_loops.value_grad_loop(
            active.row_start_T1.numpy(), active.feature_N.numpy(), w_dec_FC.numpy(), grad_out, grad_value_N.numpy()
        )
        vector_loops.decode_grad_loop(
            active.column_start_F1.numpy(), active.column_token_A.numpy(), active.column_value_A.numpy(), grad_out,
            grad_w_dec_FC.numpy(),
        )  # fmt: skip

    def encode_backward(
        self, counts_T: Tensor, feature_M: Tensor, grad_preact_M: Tensor, inputs_TD: Tensor, grad_w_enc_SD: Tensor
    ) -> None:
        loops.encode_grad_loop(
            counts_T.numpy(), feature_M.numpy(), grad_preact_M.numpy(), inputs_TD.numpy(), grad_w_enc_SD.numpy()
        )

    def add_row_squares(self, w_FC: Tensor, out_F: Tensor) -> None:
        loops.row_squares_loop(w_FC.numpy(), out_F.numpy())

    def add_scaled_rows(self, coeff_F: Tensor, w_FC: Tensor, out_FC: Tensor) -> None:
        loops.scaled_rows_loop(coeff_F.numpy(), w_FC.numpy(), out_FC.numpy())

    def sum_squares(self, values: Tensor) -> float:
        return float(loops.sum_squares_loop(values.view(-1).numpy()))

    def adam(self, param: Tensor, grad: Tensor, first: Tensor | None, second: Tensor, step: AdamStep) -> None:
        real = param.numpy().dtype.type
        rate = real(step.learning_rate / (1 - step.beta1**step.step))
        root = real((1 - step.beta2**step.step) ** -0.5)
        flat_param, flat_grad, flat_second = (tensor.view(-1).numpy() for tensor in (param, grad, second))
        scale, beta2, rest2 = real(step.grad_scale), real(step.beta2), real(1 - step.beta2)
        epsilon = real(step.epsilon)
        if first is None:
            loops.adam_without_first_loop(flat_param, flat_grad, flat_second, scale, beta2, rest2, rate, root, epsilon)
            return
        loops.adam_loop(
            flat_param, flat_grad, first.view(-1).numpy(), flat_second,
            scale, real(step.beta1), beta2, real(1 - step.beta1), rest2, rate, root, epsilon,
        )  # fmt: skip
