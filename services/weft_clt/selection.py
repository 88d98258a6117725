"""
Which features a batch or a token keeps where the largest of several layers, tokens or ranks are wanted.

The bound is found digit by digit from counts that are summed over ranks: exact, the same on every rank, and without
sending a value. What equals the bound is kept too.
Shapes: T tokens, S features of this rank, M entries of a list, G groups that each keep their own k.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from weft_clt.exchange import OwnEntries
from weft_clt.kernels.sorted_lists import entry_tokens

__all__ = ["JointCandidates", "batch_candidates", "keep_entries", "kth_largest", "row_candidates"]

_DIGIT_BITS = 8
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def kth_largest(
    value_M: Tensor, group_M: Tensor, k: int, *, num_groups: int, sum_: Callable[[Tensor], Tensor]
) -> Tensor:
    """
    Return the k-th largest value of every group over all ranks, 0 for a group that has fewer.

    Args:
        value_M: This rank's, above 0.
        group_M: Group of each, int64.
        sum_: Replaces a tensor by its sum over the ranks.
    Collectives: one sum of G x 256 counts for each byte of a value.

    >>> kth_largest(
    ...     torch.tensor([3.0, 1.0, 2.0]), torch.tensor([0, 0, 1]), 2, num_groups=2, sum_=lambda counts: counts
    ... ).tolist()
    [1.0, 0.0]
    """
    base, size, device = 1 << _DIGIT_BITS, value_M.element_size(), value_M.device
    # Floating-point numbers above 0 are ordered like their bits.
    bits_M = value_M.contiguous().view(_INTEGERS[size]).long()
    wanted_G = torch.full((num_groups,), k, dtype=torch.int64, device=device)
    prefix_G = torch.zeros(num_groups, dtype=torch.int64, device=device)
    few_G = torch.zeros(num_groups, dtype=torch.bool, device=device)
    alive_M = torch.ones_like(bits_M, dtype=torch.bool)
    for place in range(size - 1, -1, -1):
        digit_M = (bits_M >> (place * _DIGIT_BITS)) & (base - 1)
        places = (group_M * base + digit_M)[alive_M]
        counts_GB = sum_(torch.bincount(places, minlength=num_groups * base).view(num_groups, base))
        above_GB = counts_GB.flip(1).cumsum(1)
        if place == size - 1:
            few_G = above_GB[:, -1] < k
        digit_G = base - 1 - (above_GB >= wanted_G[:, None]).int().argmax(1)
        digit_G[few_G] = 0
        wanted_G -= above_GB.gather(1, (base - 1 - digit_G)[:, None])[:, 0]
        wanted_G += counts_GB.gather(1, digit_G[:, None])[:, 0]
        prefix_G = prefix_G * base + digit_G
        alive_M = alive_M & (digit_M == digit_G[group_M])
    prefix_G[few_G] = 0
    return prefix_G.to(_INTEGERS[size]).view(value_M.dtype)


def keep_entries(own: OwnEntries, kept_M: Tensor) -> OwnEntries:
    """Return the list without what is not kept."""
    token_M = entry_tokens(own.counts_T, own.feature_M.shape[0])
    counts_T = torch.bincount(token_M[kept_M], minlength=own.counts_T.shape[0])
    preact_M = None if own.preact_M is None else own.preact_M[kept_M]
    return OwnEntries(counts_T.int(), own.feature_M[kept_M], own.value_M[kept_M], preact_M)


def _listed(value_TS: Tensor, listed_TS: Tensor) -> OwnEntries:
    _, feature_M = torch.nonzero(listed_TS, as_tuple=True)
    return OwnEntries(listed_TS.sum(1, dtype=torch.int32), feature_M, value_TS[listed_TS])


def row_candidates(preact_TS: Tensor, top_k: int) -> OwnEntries:
    """List the largest k of every token, where they are above 0; what equals the smallest of them too."""
    most = min(top_k, preact_TS.shape[1])
    smallest_T1 = torch.topk(preact_TS, most, dim=1, sorted=False).values.amin(1, keepdim=True)
    return _listed(preact_TS, (preact_TS >= smallest_T1) & (preact_TS > 0))


def batch_candidates(preact_TS: Tensor, most: int, floor: float) -> tuple[OwnEntries, float]:
    """
    List the largest `most` of all tokens together, where they are above 0; what equals the smallest of them too.

    Args:
        floor: A guess below the smallest of them; a bad one costs time, never an entry.

    Returns:
        The list, and the smallest of them, 0 where there are fewer.
    """
    listed_TS = preact_TS > floor
    if floor > 0 and int(listed_TS.sum()) < most:
        listed_TS = preact_TS > 0
    own = _listed(preact_TS, listed_TS)
    num_listed = own.value_M.shape[0]
    if num_listed < most:
        return own, 0.0
    smallest = torch.kthvalue(own.value_M, num_listed - most + 1).values
    return keep_entries(own, own.value_M >= smallest), float(smallest)


@dataclass
class JointCandidates:
    """
    Candidates of one rank for the largest scores of a token over all layers, gathered layer by layer.

    Args:
        most: How many of a token are wanted in the end.
    """

    most: int
    best_TJ: Tensor

    @classmethod
    def empty(cls, num_tokens: int, most: int, like: Tensor) -> JointCandidates:
        """Begin with nothing."""
        return cls(most, like.new_zeros(num_tokens, 0))

    def see(self, score_TS: Tensor) -> None:
        """Let the scores of one more layer compete: pre-activations times decoder norms."""
        seen = torch.cat([self.best_TJ, score_TS], 1)
        self.best_TJ = torch.topk(seen, min(self.most, seen.shape[1]), dim=1, sorted=False).values

    def selected(self, score_TS: Tensor) -> Tensor:
        """Tell which of a layer's scores are among the best of all that were seen, boolean; a score of 0 is never."""
        return (score_TS >= self.best_TJ.amin(1, keepdim=True)) & (score_TS > 0)

    def add(self, preact_TS: Tensor, norms_S: Tensor) -> OwnEntries:
        """List what is among the best so far, the next layer's included."""
        score_TS = preact_TS * norms_S
        self.see(score_TS)
        return _listed(preact_TS, self.selected(score_TS))
