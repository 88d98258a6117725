"""
The active features of a batch: the only thing ranks tell each other about a forward pass.

One `ActiveLayer` lists the entries (token, feature, value) of one layer by token. An entry whose value is 0 is near its
threshold: it decodes to nothing and still receives a gradient.

Shapes: T tokens, F features of a layer over all ranks, N entries of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["ActiveLayer", "active_from_dense"]


@dataclass(frozen=True)
class ActiveLayer:
    """Entries of one layer; all indices are int32."""

    num_features: int
    """F."""
    row_start_T1: Tensor
    """First entry of a token; one more closes the last token."""
    row_active_T: Tensor
    """End of a token's entries with a value above 0, which come first."""
    feature_N: Tensor
    """Feature of an entry, over all ranks."""
    value_N: Tensor
    """Post-activation of an entry, at least 0."""
    slot_N: Tensor
    """Place of an entry in the list that ranks exchange."""

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.row_active_T.shape[0]


def active_from_dense(acts_TF: Tensor, listed_TF: Tensor | None = None) -> ActiveLayer:
    """
    List the entries of a dense activation matrix; slots count row by row.

    Args:
        acts_TF: Post-activation, >= 0.
        listed_TF: Boolean, which entries to list although their value may be 0; by default none.

    >>> active_from_dense(torch.tensor([[0.0, 2.0], [3.0, 1.0]])).feature_N.tolist()
    [1, 0, 1]
    """
    num_tokens, num_features = acts_TF.shape
    positive_TF = acts_TF > 0
    listed_TF = positive_TF if listed_TF is None else positive_TF | listed_TF
    # Entries above 0 come first in a row: sort key 0 for them, 1 for those near the threshold.
    token_N, feature_N = torch.nonzero(listed_TF, as_tuple=True)
    slot_TF = torch.cumsum(listed_TF.flatten().int(), 0).reshape(listed_TF.shape) - 1
    late_N = (~positive_TF[token_N, feature_N]).long()
    order_N = torch.argsort(token_N * 2 + late_N, stable=True)
    token_N, feature_N = token_N[order_N], feature_N[order_N]
    row_start_T1 = torch.zeros(num_tokens + 1, dtype=torch.int32, device=acts_TF.device)
    row_start_T1[1:] = torch.cumsum(listed_TF.sum(1), 0)
    return ActiveLayer(
        num_features=num_features,
        row_start_T1=row_start_T1,
        row_active_T=(row_start_T1[:-1] + positive_TF.sum(1)).int(),
        feature_N=feature_N.int(),
        value_N=acts_TF[token_N, feature_N],
        slot_N=slot_TF[token_N, feature_N].int(),
    )
