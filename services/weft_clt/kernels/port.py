"""
What a training step asks of a processor.

Every tensor is contiguous, of the floating type that is computed in, and changed in place only where a docstring says
so. The encoder's and decoder's weights and Adam's moments may be bfloat16 beside it (`dithering`).
Shapes: T tokens, L layers, F features of a layer over all ranks, S features of this rank, C columns of the output that
this rank holds, D d_model, P pairs of a source and a target layer, N entries of an `ActiveLayer` or of all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from weft_clt.active import ActiveLayer
from weft_clt.kernels.feature_lists import DecoderPairs, FeatureLists

__all__ = ["AdamStep", "Kernels"]


@dataclass(frozen=True)
class AdamStep:
    """The scalars of one Adam update."""

    learning_rate: float
    beta1: float
    beta2: float
    epsilon: float
    step: int
    """From 1, for the bias corrections."""
    grad_scale: float
    """What the gradient is multiplied by first: clipping."""


class Kernels(Protocol):
    """Sparse products and updates of one processor."""

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
        """
        Join the entries of one layer that the ranks listed.

        Args:
            counts_RT: Entries of a token on each rank, int32.
            features_R: Features over all ranks, int32, one tensor a rank, by token and, within it, ascending.
            values_R: Values of the same entries.
            slot_starts_R: Slot of each rank's first entry.
            num_features: F.
            top_k: Keep this many of the largest values of a token, the smaller feature first among equals; 0 keeps all.
        """
        ...

    def encode(
        self,
        inputs_TD: Tensor,
        w_enc_SD: Tensor,
        b_enc_S: Tensor,
        bound_S: Tensor | None,
        top_k: int,
        preact_TS: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """
        Compute the pre-activations of one layer and list some of them.

        Args:
            bound_S: List those above it; None lists the `top_k` largest above 0, of equal ones the first.
            preact_TS: Receives all pre-activations, where they are wanted.

        Returns:
            Entries of a token, int32; their features, int64, and pre-activations, by token and then by feature.
        """
        ...

    def decode_pass(
        self,
        lists: FeatureLists,
        pairs: DecoderPairs,
        w_dec_PFC: Tensor,
        b_dec_LC: Tensor,
        targets_LTC: Tensor,
        error_LTC: Tensor,
    ) -> None:
        """Write the prediction, which is the bias and all decoder rows times their values, minus the target."""
        ...

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
        """
        Write the gradient of every entry's value at its slot, and of the decoder's bias.

        Args:
            near_LF: Receives, feature by feature, the sum of the gradients of entries at 0; all slots but those of
                entries above 0 are 0 then. A sum of rows and one product a feature take less than a product an entry.

        Returns:
            The sum of squares of the decoder's gradient, which `decoder_adam` will compute again.
        """
        ...

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
        """
        Update the decoder by Adam without its gradient in memory.

        Args:
            coeff_LF: The gradient has `coeff_LF` times the decoder's row beside what comes from `grad_out_LTC`.
        """
        ...

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
        """Add the gradient that `decoder_adam` uses to `grad_w_dec_PFC`; where `fresh`, write over what is there."""
        ...

    def encode_backward(
        self, counts_T: Tensor, feature_M: Tensor, grad_preact_M: Tensor, inputs_TD: Tensor, grad_w_enc_SD: Tensor
    ) -> None:
        """Add the outer products of the listed pre-activation gradients and their inputs to `grad_w_enc_SD`."""
        ...

    def add_row_squares(self, w_FC: Tensor, out_F: Tensor) -> None:
        """Add the squared norm of every row to `out_F`."""
        ...

    def sum_squares(self, values: Tensor) -> float:
        """Sum the squares of a tensor, in float64."""
        ...

    def adam(self, param: Tensor, grad: Tensor, first: Tensor | None, second: Tensor, step: AdamStep) -> None:
        """Update `param`, `first` and `second` in place; `first` is None where beta1 is 0 and needs no state."""
        ...
