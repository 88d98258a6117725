"""
The rows of a lease, and which of them are kept.

Legend: L layers, T tokens, D d_model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from weft_activations.core.harvest_records import HarvestSpec
from weft_activations.core.ports import Floats, ModelInfo

__all__ = ["Rows"]


@dataclass
class Rows:
    """
    The rows of a lease, in memory that serves one lease after the other: fresh pages cost as much as a copy.

    Attributes:
        whole: By hook, [L, T, D] each: room for any lease.
        norm_hook: Whose norms say which tokens are left out.
        num_tokens: How many of T are this lease's and are kept.
        left_out: Which of those that the packing keeps were left out for their norm, rising.
    """

    whole: Mapping[str, Floats]
    norm_hook: str
    num_tokens: int = 0
    left_out: npt.NDArray[np.intp] = field(default_factory=lambda: np.zeros(0, np.intp))

    @classmethod
    def with_room(cls, spec: HarvestSpec, info: ModelInfo, num_tokens: int) -> "Rows":
        """Make room for so many tokens."""
        shape = (info.num_layers, num_tokens, info.d_model)
        return cls({hook: np.empty(shape, np.float32) for hook in spec.hooks}, spec.output_hook)

    def kept(self, hook: str) -> Floats:
        """What is kept of what lies at a hook, [L, T, D]."""
        return self.whole[hook][:, : self.num_tokens]

    def output_norms(self) -> Floats:
        """Euclidean norms of the outputs, [L, T]."""
        outputs_LTD = self.kept(self.norm_hook)
        squares_LT: Floats = np.einsum("ltd,ltd->lt", outputs_LTD, outputs_LTD)
        return np.sqrt(squares_LT)

    def leave_out(self, limits_L: npt.NDArray[np.float64]) -> None:
        """Drop the tokens whose output norm reaches its layer's limit anywhere."""
        kept_T: npt.NDArray[np.bool_] = np.asarray((self.output_norms() < limits_L[:, None]).all(axis=0))
        self.left_out = np.flatnonzero(~kept_T)
        self.keep(kept_T)

    def keep(self, kept_T: npt.NDArray[np.bool_]) -> None:
        """Drop the tokens that are not kept."""
        num_kept = int(kept_T.sum())
        if num_kept < self.num_tokens:
            for hook in self.whole:
                for layer_TD in self.kept(hook):
                    layer_TD[:num_kept] = layer_TD[kept_T]
            self.num_tokens = num_kept
