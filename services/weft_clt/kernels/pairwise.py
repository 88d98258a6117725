"""
The products of a whole pass, put together from those of one pair of a source and a target layer.

For kernels that know one pair at a time; the decoder's gradient exists one block at a time.
Shapes: see `weft_clt.kernels.port`.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from weft_clt.active import ActiveLayer
from weft_clt.kernels.feature_lists import DecoderPairs, FeatureLists
from weft_clt.kernels.port import AdamStep

__all__ = ["PairKernels", "PairwisePasses"]


class PairKernels(Protocol):
    """What one pair of layers asks for."""

    def decode(self, active: ActiveLayer, w_dec_FC: Tensor, out_TC: Tensor) -> None:
        """Add to `out_TC` the decoder rows of the active features, times their values."""
        ...

    def decode_backward(
        self, active: ActiveLayer, w_dec_FC: Tensor, grad_out_TC: Tensor, grad_value_N: Tensor, grad_w_dec_FC: Tensor
    ) -> None:
        """Add the gradient of every entry's value to `grad_value_N`; overwrite `grad_w_dec_FC` with the decoder's."""
        ...

    def add_scaled_rows(self, coeff_F: Tensor, w_FC: Tensor, out_FC: Tensor) -> None:
        """Add `coeff_F` times the rows of `w_FC` to `out_FC`."""
        ...

    def sum_squares(self, values: Tensor) -> float:
        """Sum the squares of a tensor, in float64."""
        ...

    def adam(self, param: Tensor, grad: Tensor, first: Tensor | None, second: Tensor, step: AdamStep) -> None:
        """Update `param`, `first` and `second` in place."""
        ...


class PairwisePasses:
    """Implements the passes of `weft_clt.kernels.port.Kernels` for a class that is also `PairKernels`."""

    def encode(
        self,
        inputs_TD: Tensor,
        w_enc_SD: Tensor,
        b_enc_S: Tensor,
        bound_S: Tensor | None,
        top_k: int,
        preact_TS: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        preact_TS = torch.addmm(b_enc_S, inputs_TD, w_enc_SD.T, out=preact_TS)
        if bound_S is None:
            order_TS = torch.argsort(preact_TS, dim=1, descending=True, stable=True)
            listed_TS = torch.zeros_like(preact_TS, dtype=torch.bool).scatter_(1, order_TS[:, :top_k], True)
            listed_TS &= preact_TS > 0
        else:
            listed_TS = preact_TS > bound_S
        counts_T = listed_TS.sum(1, dtype=torch.int32)
        return counts_T, torch.nonzero(listed_TS, as_tuple=True)[1], preact_TS[listed_TS]

    def decode_pass(
        self: PairKernels,
        lists: FeatureLists,
        pairs: DecoderPairs,
        w_dec_PFC: Tensor,
        b_dec_LC: Tensor,
        targets_LTC: Tensor,
        error_LTC: Tensor,
    ) -> None:
        torch.sub(b_dec_LC[:, None], targets_LTC, out=error_LTC)
        for source, target, block in pairs.rows():
            self.decode(lists.layers[source], w_dec_PFC[block], error_LTC[target])

    def value_grad_pass(
        self: PairKernels,
        lists: FeatureLists,
        pairs: DecoderPairs,
        w_dec_PFC: Tensor,
        grad_out_LTC: Tensor,
        grad_slots: Tensor,
        grad_b_dec_LC: Tensor,
    ) -> float:
        torch.sum(grad_out_LTC, 1, out=grad_b_dec_LC)
        grad_value_L = [torch.zeros_like(layer.value_N) for layer in lists.layers]
        grad_FC = torch.empty_like(w_dec_PFC[0])
        squares = 0.0
        for source, target, block in pairs.rows():
            layer, grad_out_TC = lists.layers[source], grad_out_LTC[target]
            self.decode_backward(layer, w_dec_PFC[block], grad_out_TC, grad_value_L[source], grad_FC)
            squares += self.sum_squares(grad_FC)
        for layer, grad_N in zip(lists.layers, grad_value_L, strict=True):
            grad_slots[layer.slot_N.long()] = grad_N
        return squares

    def decoder_gradient(
        self: PairKernels,
        lists: FeatureLists,
        pairs: DecoderPairs,
        w_dec_PFC: Tensor,
        grad_out_LTC: Tensor,
        coeff_LF: Tensor,
        grad_w_dec_PFC: Tensor,
    ) -> None:
        for source, target, block in pairs.rows():
            layer, weight, grad = lists.layers[source], w_dec_PFC[block], grad_w_dec_PFC[block]
            self.decode_backward(layer, weight, grad_out_LTC[target], torch.zeros_like(layer.value_N), grad)
            self.add_scaled_rows(coeff_LF[source], weight, grad)

    def decoder_adam(
        self: PairKernels,
        lists: FeatureLists,
        pairs: DecoderPairs,
        w_dec_PFC: Tensor,
        grad_out_LTC: Tensor,
        coeff_LF: Tensor,
        first_PFC: Tensor | None,
        second_PFC: Tensor,
        step: AdamStep,
    ) -> None:
        grad_FC = torch.empty_like(w_dec_PFC[0])
        for source, target, block in pairs.rows():
            layer, weight = lists.layers[source], w_dec_PFC[block]
            self.decode_backward(layer, weight, grad_out_LTC[target], torch.zeros_like(layer.value_N), grad_FC)
            self.add_scaled_rows(coeff_LF[source], weight, grad_FC)
            self.adam(weight, grad_FC, None if first_PFC is None else first_PFC[block], second_PFC[block], step)
