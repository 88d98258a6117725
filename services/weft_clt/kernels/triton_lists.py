"""
The lists of active entries on a device: joined over ranks, and ordered by feature.

Sorting is torch's (stable radix sorts), so the order never depends on which program came first.
Shapes: see `weft_clt.kernels.port`; A entries above 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weft_clt.active import ActiveLayer
from weft_clt.kernels.triton_top_k import keep_largest

__all__ = ["IndexedLayer", "entries_by_feature", "entry_tokens", "merge_lists", "segment_starts"]


@dataclass(frozen=True)
class IndexedLayer(ActiveLayer):
    """An active layer that knows where the entries by feature stand by token."""

    column_entry_A: Tensor
    """Place in `feature_N` of the entries above 0, by feature, int32."""


def entry_tokens(counts_T: Tensor, num_entries: int) -> Tensor:
    """Return the token of every entry, int64; the number of entries is given so that nothing waits for the device."""
    token_T = torch.arange(counts_T.shape[0], device=counts_T.device)
    return torch.repeat_interleave(token_T, counts_T.long(), output_size=num_entries)


def segment_starts(sorted_N: Tensor, num_segments: int) -> Tensor:
    """
    Return the first place of every number in an ascending list, and one more; int32.

    >>> segment_starts(torch.tensor([0, 0, 2]), 3).tolist()
    [0, 2, 2, 3]
    """
    bounds = torch.arange(num_segments + 1, device=sorted_N.device, dtype=sorted_N.dtype)
    return torch.searchsorted(sorted_N, bounds, out_int32=True)


def entries_by_feature(active: ActiveLayer) -> Tensor:
    """Return the places of the entries above 0, by feature and, within it, by token."""
    if isinstance(active, IndexedLayer):
        return active.column_entry_A
    entry_A = torch.nonzero(active.value_N > 0).squeeze(1)
    return entry_A[torch.argsort(active.feature_N[entry_A], stable=True)]


def merge_lists(
    counts_RT: Tensor,
    features_R: list[Tensor],
    values_R: list[Tensor],
    slot_starts_R: list[int],
    *,
    num_features: int,
    top_k: int,
) -> IndexedLayer:
    """See `Kernels.merge`; features ascend over the ranks, as the ranks' shares do."""
    device, num_tokens = counts_RT.device, counts_RT.shape[1]
    lengths = [int(feature_N.shape[0]) for feature_N in features_R]
    token_N = torch.cat([entry_tokens(counts_T, num) for counts_T, num in zip(counts_RT, lengths, strict=True)])
    slot_N = torch.cat(
        [torch.arange(start, start + num, device=device) for start, num in zip(slot_starts_R, lengths, strict=True)]
    )
    feature_N, value_N = torch.cat(features_R).long(), torch.cat(values_R)
    if top_k:
        order_N = torch.argsort(token_N, stable=True)
        token_N, slot_N, feature_N, value_N = (each[order_N] for each in (token_N, slot_N, feature_N, value_N))
        keep_N, _ = keep_largest(segment_starts(token_N, num_tokens), value_N, top_k)
        token_N, slot_N, feature_N, value_N = (each[keep_N] for each in (token_N, slot_N, feature_N, value_N))
    # Entries above 0 come first in a row, each kind rank by rank.
    order_N = torch.argsort(token_N * 2 + (value_N <= 0), stable=True)
    token_N, slot_N, feature_N, value_N = (each[order_N] for each in (token_N, slot_N, feature_N, value_N))
    kind_N = token_N * 2 + (value_N <= 0)
    bounds_T2 = segment_starts(kind_N, 2 * num_tokens)
    entry_A = torch.nonzero(value_N > 0).squeeze(1)
    entry_A = entry_A[torch.argsort(feature_N[entry_A], stable=True)]
    return IndexedLayer(
        num_features=num_features,
        row_start_T1=bounds_T2[::2].contiguous(),
        row_active_T=bounds_T2[1::2].contiguous(),
        feature_N=feature_N.int(),
        value_N=value_N,
        slot_N=slot_N.int(),
        column_start_F1=segment_starts(feature_N[entry_A], num_features),
        column_token_A=token_N[entry_A].int(),
        column_value_A=value_N[entry_A],
        column_entry_A=entry_A.int(),
    )
