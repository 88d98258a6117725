"""
What a training step asks of a processor.

Every tensor is contiguous, of the model's floating type, and changed in place only where a docstring says so.
Shapes: T tokens, F features of a layer over all ranks, S features of this rank, C columns of the output that this rank
holds, D d_model, N entries of an `ActiveLayer`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from weft_clt.active import ActiveLayer

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

    def decode(self, active: ActiveLayer, w_dec_FC: Tensor, out_TC: Tensor) -> None:
        """Add to `out_TC` the decoder rows of the active features, times their values."""
        ...

    def decode_backward(
        self, active: ActiveLayer, w_dec_FC: Tensor, grad_out_TC: Tensor, grad_value_N: Tensor, grad_w_dec_FC: Tensor
    ) -> None:
        """Add the gradient of every entry's value to `grad_value_N`; overwrite `grad_w_dec_FC` with the decoder's."""
        ...

    def encode_backward(
        self, counts_T: Tensor, feature_M: Tensor, grad_preact_M: Tensor, inputs_TD: Tensor, grad_w_enc_SD: Tensor
    ) -> None:
        """Add the outer products of the listed pre-activation gradients and their inputs to `grad_w_enc_SD`."""
        ...

    def add_row_squares(self, w_FC: Tensor, out_F: Tensor) -> None:
        """Add the squared norm of every row to `out_F`."""
        ...

    def add_scaled_rows(self, coeff_F: Tensor, w_FC: Tensor, out_FC: Tensor) -> None:
        """Add `coeff_F` times the rows of `w_FC` to `out_FC`."""
        ...

    def sum_squares(self, values: Tensor) -> float:
        """Sum the squares of a tensor, in float64."""
        ...

    def adam(self, param: Tensor, grad: Tensor, first: Tensor | None, second: Tensor, step: AdamStep) -> None:
        """Update `param`, `first` and `second` in place; `first` is None where beta1 is 0 and needs no state."""
        ...
