"""
AuxK: dead features learn to predict the error that the living ones leave.

Source: Gao et al. 2024, "Scaling and evaluating sparse autoencoders", appendix A.2; k 512 and weight 1/32 are theirs.
Deviations: dead is counted in tokens; only positive pre-activations count; the weight does not fall where fewer than k
features are dead. The error is a constant to this loss: its gradient reaches dead features only.
The dead features' reconstruction is laid out as a second batch of the same tokens behind the first, so that one pass
of the decoder's kernels serves both.
Shapes: T tokens, S features of this rank, E of them dead.
"""

from __future__ import annotations

import torch
from torch import Tensor

from weft_clt.active import ActiveLayer
from weft_clt.exchange import OwnEntries
from weft_clt.selection import row_candidates

__all__ = ["dead_candidates", "stack_tokens"]


def dead_candidates(preact_TS: Tensor, dead_S: Tensor, top_k: int) -> OwnEntries:
    """List the largest k dead features of every token, where they are above 0."""
    dead_E = torch.nonzero(dead_S)[:, 0]
    if not dead_E.numel():
        counts_T = torch.zeros(preact_TS.shape[0], dtype=torch.int32, device=preact_TS.device)
        return OwnEntries(counts_T, dead_E, preact_TS.new_empty(0))
    found = row_candidates(preact_TS[:, dead_E], top_k)
    return OwnEntries(found.counts_T, dead_E[found.feature_M], found.value_M)


def stack_tokens(first: ActiveLayer, second: ActiveLayer) -> ActiveLayer:
    """
    Join two batches of one layer, the second's tokens behind the first's; slots stay as they are.

    >>> from weft_clt.active import active_from_dense
    >>> one = active_from_dense(torch.tensor([[0.0, 2.0], [3.0, 1.0]]))
    >>> both = stack_tokens(one, one)
    >>> both.row_start_T1.tolist(), both.feature_N.tolist()
    ([0, 1, 3, 4, 6], [1, 0, 1, 1, 0, 1])
    """
    entries = first.feature_N.shape[0]
    return ActiveLayer(
        num_features=first.num_features,
        row_start_T1=torch.cat([first.row_start_T1, second.row_start_T1[1:] + entries]),
        row_active_T=torch.cat([first.row_active_T, second.row_active_T + entries]),
        feature_N=torch.cat([first.feature_N, second.feature_N]),
        value_N=torch.cat([first.value_N, second.value_N]),
        slot_N=torch.cat([first.slot_N, second.slot_N]),
    )
