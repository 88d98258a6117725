"""
Norms of decoder rows over all targets and all ranks' columns, which losses and joint TopK weigh by.

Shapes: L layers, F features of a layer over all ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from weft_clt.kernels import Kernels
from weft_clt.mesh import Axis, Pending
from weft_clt.parameters import Parameters

__all__ = ["RowNorms"]


@dataclass(frozen=True)
class RowNorms:
    """Norms of all decoder rows, whose squares are being summed; waited for once."""

    squares_LF: Tensor
    pending: Pending

    @classmethod
    def start(cls, params: Parameters, kernels: Kernels, axis: Axis) -> RowNorms:
        """
        Start to sum the squares of all decoder rows over all targets and columns.

        Args:
            axis: The feature axis.
        Collectives: starts one reduction of L x F squares on it.
        """
        shape = params.share.shape
        squares_LF = params.b_enc_LS.new_zeros(shape.num_layers, shape.num_features)
        for source in range(shape.num_layers):
            for target in shape.targets(source):
                kernels.add_row_squares(params.decoder(source, target), squares_LF[source])
        return cls(squares_LF, axis.start_sum_(squares_LF))

    def wait(self) -> Tensor:
        """Return the norms [L, F]."""
        self.pending.wait()
        return self.squares_LF.sqrt_()
