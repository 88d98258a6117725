"""
The decoder's gradient as its factors: the entries' values and the errors, not the product.

The gradient of a decoder row is the sum of value * error over the row's entries, plus, where a loss has norms of rows
in it, a multiple of the row itself. As large as the decoder, it would be written once and read twice; here the product
is taken twice instead, once for its norm and once where Adam uses it. Only what is summed over passes or data ranks is
written out.
Shapes: L layers, F features of a layer over all ranks, C columns of this rank, P pairs of a source and a target layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from weft_clt.kernels import AdamStep, DecoderPairs, FeatureLists, Kernels
from weft_clt.parameters import Parameters

__all__ = ["DecoderGradient"]


class DecoderGradient:
    """
    One rank's part of one step.

    Args:
        grad_out_LTC: Gradient of the loss by the predictions; belongs to the engine and lives until its next pass.
    """

    def __init__(
        self, kernels: Kernels, params: Parameters, pairs: DecoderPairs, lists: FeatureLists, grad_out_LTC: Tensor
    ) -> None:
        self._kernels, self._params, self._pairs = kernels, params, pairs
        self._lists, self._grad_out_LTC = lists, grad_out_LTC
        self._coeff_LF = grad_out_LTC.new_zeros(params.share.shape.num_layers, params.share.shape.num_features)
        self._grad_slots = grad_out_LTC.new_empty(0)
        self.squares = 0.0
        """Sum of squares of this rank's part."""

    def back_to_values(self, grad_slots: Tensor, grad_b_dec_LC: Tensor, near_LF: Tensor | None) -> None:
        """Write the gradients of the entries' values and of the decoder's bias; see `Kernels.value_grad_pass`."""
        self.squares = self._kernels.value_grad_pass(
            self._lists, self._pairs, self._params.w_dec_PFC, self._grad_out_LTC, grad_slots, grad_b_dec_LC,
            near_LF,
        )  # fmt: skip
        self._grad_slots = grad_slots

    def add_norms(self, norms_LF: Tensor, grad_norms_LF: Tensor, num_ranks: int) -> None:
        """
        Add the gradient by the rows' norms, which is a multiple of each row.

        Args:
            norms_LF: Over all targets and all ranks' columns.
            num_ranks: Ranks that share out the columns.
        """
        coeff_LF = torch.where(norms_LF > 0, grad_norms_LF / norms_LF, torch.zeros_like(norms_LF))
        self._coeff_LF = coeff_LF.contiguous()
        # |G + c W|^2 = |G|^2 + 2 c <G, W> + c^2 |W|^2 for each row, and <G, W> is the sum of value * its gradient.
        # The host learns of the sum at the end: it does not wait for the device layer by layer.
        lists = self._lists
        total = norms_LF.new_zeros((), dtype=torch.float64)
        for layer in range(coeff_LF.shape[0]):
            # What lies at 0 adds nothing, but how many there are of the others only the device knows.
            part = lists.part(layer)
            counts = torch.cat([lists.start_LF1[layer].diff(), lists.near_LF1[layer].diff()]).long()
            coeff_N = torch.repeat_interleave(coeff_LF[layer].repeat(2), counts, output_size=part.stop - part.start)
            inner_N = self._grad_slots.index_select(0, lists.slot_N[part])
            inner_N *= lists.value_N[part]
            total += 2 * (coeff_N * inner_N).sum(dtype=torch.float64)
        self.squares += float(total + (coeff_LF.double() * norms_LF.double()).square().sum() / num_ranks)

    def add_to(self, grad_w_dec_PFC: Tensor, *, fresh: bool = False) -> None:
        """Add the gradient, written out; where `fresh`, write over what is there."""
        self._kernels.decoder_gradient(
            self._lists, self._pairs, self._params.w_dec_PFC, self._grad_out_LTC, self._coeff_LF, grad_w_dec_PFC,
            fresh=fresh,
        )  # fmt: skip

    def update(self, first_PFC: Tensor | None, second_PFC: Tensor, step: AdamStep) -> None:
        """Update the decoder's weights and moments by Adam."""
        self._kernels.decoder_adam(
            self._lists, self._pairs, self._params.w_dec_PFC, self._grad_out_LTC, self._coeff_LF, first_PFC, second_PFC,
            step,
        )  # fmt: skip
