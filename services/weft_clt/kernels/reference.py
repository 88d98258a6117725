"""
The kernels in plain torch, dense where that is simplest: the oracle of every other implementation.

Shapes: see `weft_clt.kernels.port`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from weft_clt.active import ActiveLayer, active_from_dense
from weft_clt.kernels.dithering import rounded_adam, rounds
from weft_clt.kernels.feature_lists import DecoderPairs, FeatureLists
from weft_clt.kernels.port import AdamStep

__all__ = ["ReferenceKernels"]


def _entry_tokens(counts_T: Tensor) -> Tensor:
    return torch.repeat_interleave(torch.arange(counts_T.shape[0], device=counts_T.device), counts_T.long())


def _dense(active: ActiveLayer) -> Tensor:
    dense_TF = active.value_N.new_zeros(active.num_tokens, active.num_features)
    dense_TF[_entry_tokens(active.row_start_T1.diff()), active.feature_N.long()] = active.value_N
    return dense_TF


class ReferenceKernels:
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
        num_tokens, device = counts_RT.shape[1], counts_RT.device
        dense_TF = values_R[0].new_zeros(num_tokens, num_features)
        listed_TF = torch.zeros(num_tokens, num_features, dtype=torch.bool, device=device)
        slot_TF = torch.zeros(num_tokens, num_features, dtype=torch.int32, device=device)
        for counts_T, feature_N, value_N, start in zip(counts_RT, features_R, values_R, slot_starts_R, strict=True):
            token_N, column_N = _entry_tokens(counts_T), feature_N.long()
            dense_TF[token_N, column_N] = value_N
            listed_TF[token_N, column_N] = True
            slots_N = torch.arange(start, start + feature_N.shape[0], dtype=torch.int32, device=device)
            slot_TF[token_N, column_N] = slots_N
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

    def encode(
        self,
        inputs_TD: Tensor,
        w_enc_SD: Tensor,
        b_enc_S: Tensor,
        bound_S: Tensor | None,
        top_k: int,
        preact_TS: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        preact_TS = torch.addmm(b_enc_S, inputs_TD, w_enc_SD.to(inputs_TD.dtype).T, out=preact_TS)
        if bound_S is None:
            order_TS = torch.argsort(preact_TS, dim=1, descending=True, stable=True)
            listed_TS = torch.zeros_like(preact_TS, dtype=torch.bool).scatter_(1, order_TS[:, :top_k], True)
            listed_TS &= preact_TS > 0
        else:
            listed_TS = preact_TS > bound_S
        counts_T = listed_TS.sum(1, dtype=torch.int32)
        return counts_T, torch.nonzero(listed_TS, as_tuple=True)[1], preact_TS[listed_TS]

    def decode_pass(
        self,
        lists: FeatureLists,
        pairs: DecoderPairs,
        w_dec_PFC: Tensor,
        b_dec_LC: Tensor,
        targets_LTC: Tensor,
        error_LTC: Tensor,
    ) -> None:
        torch.sub(b_dec_LC[:, None], targets_LTC, out=error_LTC)
        for source, target, block in pairs.rows():
            self._decode(lists.layers[source], w_dec_PFC[block], error_LTC[target])

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
        torch.sum(grad_out_LTC, 1, out=grad_b_dec_LC)
        grad_value_L = [torch.zeros_like(layer.value_N) for layer in lists.layers]
        grad_FC = grad_out_LTC.new_empty(w_dec_PFC.shape[1:])
        squares = 0.0
        for source, target, block in pairs.rows():
            layer, grad_out_TC = lists.layers[source], grad_out_LTC[target]
            self._decode_backward(layer, w_dec_PFC[block], grad_out_TC, grad_value_L[source], grad_FC)
            squares += self.sum_squares(grad_FC)
        for index, (layer, grad_N) in enumerate(zip(lists.layers, grad_value_L, strict=True)):
            if near_LF is not None:
                near_N = layer.value_N <= 0
                near_LF[index].zero_().index_add_(0, layer.feature_N.long(), grad_N * near_N)
                grad_N = grad_N * ~near_N
            grad_slots[layer.slot_N.long()] = grad_N
        return squares

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
        grad_FC = grad_out_LTC.new_empty(w_dec_PFC.shape[1:])
        for source, target, block in pairs.rows():
            layer, weight = lists.layers[source], w_dec_PFC[block]
            self._decode_backward(layer, weight, grad_out_LTC[target], torch.zeros_like(layer.value_N), grad_FC)
            grad_FC += coeff_LF[source][:, None] * weight
            if fresh:
                grad_w_dec_PFC[block] = grad_FC
            else:
                grad_w_dec_PFC[block] += grad_FC

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
        grad_FC = grad_out_LTC.new_empty(w_dec_PFC.shape[1:])
        for source, target, block in pairs.rows():
            layer, weight = lists.layers[source], w_dec_PFC[block]
            self._decode_backward(layer, weight, grad_out_LTC[target], torch.zeros_like(layer.value_N), grad_FC)
            grad_FC += coeff_LF[source][:, None] * weight
            self.adam(weight, grad_FC, None if first_PFC is None else first_PFC[block], second_PFC[block], step)

    def _decode(self, active: ActiveLayer, w_dec_FC: Tensor, out_TC: Tensor) -> None:
        """Add to `out_TC` the decoder rows of the active features, times their values."""
        out_TC += _dense(active) @ w_dec_FC.to(out_TC.dtype)

    def _decode_backward(
        self, active: ActiveLayer, w_dec_FC: Tensor, grad_out_TC: Tensor, grad_value_N: Tensor, grad_w_dec_FC: Tensor
    ) -> None:
        """Add the gradient of every entry's value to `grad_value_N`; overwrite `grad_w_dec_FC` with the decoder's."""
        token_N = _entry_tokens(active.row_start_T1.diff())
        grad_value_N += (grad_out_TC @ w_dec_FC.to(grad_out_TC.dtype).T)[token_N, active.feature_N.long()]
        grad_w_dec_FC.copy_(_dense(active).T @ grad_out_TC)

    def encode_backward(
        self, counts_T: Tensor, feature_M: Tensor, grad_preact_M: Tensor, inputs_TD: Tensor, grad_w_enc_SD: Tensor
    ) -> None:
        grad_preact_TS = inputs_TD.new_zeros(inputs_TD.shape[0], grad_w_enc_SD.shape[0])
        grad_preact_TS[_entry_tokens(counts_T), feature_M.long()] = grad_preact_M
        grad_w_enc_SD += grad_preact_TS.T @ inputs_TD

    def add_row_squares(self, w_FC: Tensor, out_F: Tensor) -> None:
        out_F += w_FC.to(out_F.dtype).square().sum(1)

    def sum_squares(self, values: Tensor) -> float:
        return float(values.double().square().sum())

    def adam(self, param: Tensor, grad: Tensor, first: Tensor | None, second: Tensor, step: AdamStep) -> None:
        if rounds(param, grad, second):
            rounded_adam(self.adam, param, grad, first, second, step)
            return
        scaled = grad * step.grad_scale
        if first is None:
            moment = scaled
        else:
            first.mul_(step.beta1).add_(scaled, alpha=1 - step.beta1)
            moment = first / (1 - step.beta1**step.step)
        second.mul_(step.beta2).addcmul_(scaled, scaled, value=1 - step.beta2)
        scale = (second / (1 - step.beta2**step.step)).sqrt_().add_(step.epsilon)
        param.sub_(moment / scale, alpha=step.learning_rate)
