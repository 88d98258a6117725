"""
The kernels in plain torch, dense where that is simplest: the oracle of every other implementation.

Shapes: see `weft_clt.kernels.port`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from weft_clt.active import ActiveLayer, active_from_dense
from weft_clt.kernels.pairwise import PairwisePasses
from weft_clt.kernels.port import AdamStep

__all__ = ["ReferenceKernels"]


def _entry_tokens(counts_T: Tensor) -> Tensor:
    return torch.repeat_interleave(torch.arange(counts_T.shape[0]), counts_T.long())


def _dense(active: ActiveLayer) -> Tensor:
    dense_TF = active.value_N.new_zeros(active.num_tokens, active.num_features)
    dense_TF[_entry_tokens(active.row_start_T1.diff()), active.feature_N.long()] = active.value_N
    return dense_TF


class ReferenceKernels(PairwisePasses):
    """Runs on anything torch runs on, in any floating type; slow."""

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
        dense_TF = values_R[0].new_zeros(num_tokens, num_features)
        listed_TF = torch.zeros(num_tokens, num_features, dtype=torch.bool)
        slot_TF = torch.zeros(num_tokens, num_features, dtype=torch.int32)
        for counts_T, feature_N, value_N, start in zip(counts_RT, features_R, values_R, slot_starts_R, strict=True):
            token_N, column_N = _entry_tokens(counts_T), feature_N.long()
            dense_TF[token_N, column_N] = value_N
            listed_TF[token_N, column_N] = True
            slot_TF[token_N, column_N] = torch.arange(start, start + feature_N.shape[0], dtype=torch.int32)
        if top_k:
            order_TF = torch.argsort(dense_TF, dim=1, descending=True, stable=True)
            kept_TF = torch.zeros_like(listed_TF)
            kept_TF.scatter_(1, order_TF[:, :top_k], True)
            listed_TF &= kept_TF
            dense_TF = dense_TF * kept_TF
        active = active_from_dense(dense_TF, listed_TF)
        token_N = _entry_tokens(active.row_start_T1.diff())
        slot_N = slot_TF[token_N, active.feature_N.long()]
        return ActiveLayer(**{**active.__dict__, "slot_N": slot_N})

    def decode(self, active: ActiveLayer, w_dec_FC: Tensor, out_TC: Tensor) -> None:
        out_TC += _dense(active) @ w_dec_FC

    def decode_backward(
        self, active: ActiveLayer, w_dec_FC: Tensor, grad_out_TC: Tensor, grad_value_N: Tensor, grad_w_dec_FC: Tensor
    ) -> None:
        token_N = _entry_tokens(active.row_start_T1.diff())
        grad_value_N += (grad_out_TC @ w_dec_FC.T)[token_N, active.feature_N.long()]
        grad_w_dec_FC.copy_(_dense(active).T @ grad_out_TC)

    def encode_backward(
        self, counts_T: Tensor, feature_M: Tensor, grad_preact_M: Tensor, inputs_TD: Tensor, grad_w_enc_SD: Tensor
    ) -> None:
        grad_preact_TS = inputs_TD.new_zeros(inputs_TD.shape[0], grad_w_enc_SD.shape[0])
        grad_preact_TS[_entry_tokens(counts_T), feature_M.long()] = grad_preact_M
        grad_w_enc_SD += grad_preact_TS.T @ inputs_TD

    def add_row_squares(self, w_FC: Tensor, out_F: Tensor) -> None:
        out_F += w_FC.square().sum(1)

    def add_scaled_rows(self, coeff_F: Tensor, w_FC: Tensor, out_FC: Tensor) -> None:
        out_FC += coeff_F[:, None] * w_FC

    def sum_squares(self, values: Tensor) -> float:
        return float(values.double().square().sum())

    def adam(self, param: Tensor, grad: Tensor, first: Tensor | None, second: Tensor, step: AdamStep) -> None:
        scaled = grad * step.grad_scale
        if first is None:
            moment = scaled
        else:
            first.mul_(step.beta1).add_(scaled, alpha=1 - step.beta1)
            moment = first / (1 - step.beta1**step.step)
        second.mul_(step.beta2).addcmul_(scaled, scaled, value=1 - step.beta2)
        scale = (second / (1 - step.beta2**step.step)).sqrt_().add_(step.epsilon)
        param.sub_(moment / scale, alpha=step.learning_rate)
