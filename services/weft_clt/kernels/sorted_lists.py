"""
The lists of active entries by torch's own sorts: on any device, and always in the same order.

Stable sorts of integers; nothing depends on which program came first. Sizes are taken from the tensors' shapes, so that
the host waits for the device only where a list gets shorter.
Shapes: see `weft_clt.kernels.port`; F features of one layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from weft_clt.active import ActiveLayer

__all__ = ["add_entries", "by_feature", "entry_tokens", "joined", "segment_starts"]


def entry_tokens(counts_T: Tensor, num_entries: int) -> Tensor:
    """Return the token of every entry, int64; the number of entries is given so that nothing waits for the device."""
    token_T = torch.arange(counts_T.shape[0], device=counts_T.device)
    return torch.repeat_interleave(token_T, counts_T.long(), output_size=num_entries)


def add_entries(out_S: Tensor, feature_M: Tensor, value_M: Tensor) -> None:
    """
    Add every entry's value to that of its feature, always in the same order.

    >>> sums = torch.zeros(3)
    >>> add_entries(sums, torch.tensor([2, 0, 2]), torch.tensor([1.0, 2.0, 4.0]))
    >>> sums.tolist()
    [2.0, 0.0, 5.0]
    """
    if out_S.device.type == "cpu":
        out_S.index_add_(0, feature_M, value_M)
    else:
        # A GPU's index_add_ adds in whatever order its threads come; this one sorts first.
        out_S.index_put_((feature_M,), value_M, accumulate=True)


def segment_starts(sorted_N: Tensor, num_segments: int) -> Tensor:
    """
    Return the first place of every number in an ascending list, and one more; int32.

    >>> segment_starts(torch.tensor([0, 0, 2]), 3).tolist()
    [0, 2, 2, 3]
    """
    bounds = torch.arange(num_segments + 1, device=sorted_N.device, dtype=sorted_N.dtype)
    return torch.searchsorted(sorted_N, bounds, out_int32=True)


def joined(
    token_N: Tensor, feature_N: Tensor, value_N: Tensor, slot_N: Tensor, num_tokens: int, num_features: int
) -> ActiveLayer:
    """List entries that come in the order of their features, or rank by rank; int64 but for the values."""
    silent_N = value_N <= 0
    # Entries above 0 come first in a row.
    kind_N, order_N = torch.sort(token_N * 2 + silent_N, stable=True)
    token_N, feature_N, value_N, slot_N = (each[order_N] for each in (token_N, feature_N, value_N, slot_N))
    bounds_T2 = segment_starts(kind_N, 2 * num_tokens)
    return ActiveLayer(
        num_features=num_features,
        row_start_T1=bounds_T2[::2].contiguous(),
        row_active_T=bounds_T2[1::2].contiguous(),
        feature_N=feature_N.int(),
        value_N=value_N,
        slot_N=slot_N.int(),
    )


def by_feature(layer: ActiveLayer) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """
    Order the entries of a layer: those above 0 by feature, then those at 0 by feature, tokens ascending.

    Returns:
        First entry above 0 of a feature and one more, the same of those at 0, and the entries' tokens, values and
        slots; as in `FeatureLists`.
    """
    num_features = layer.num_features
    token_N = entry_tokens(layer.row_start_T1.diff(), layer.value_N.shape[0])
    kind_N, order_N = torch.sort(layer.feature_N.long() + num_features * (layer.value_N <= 0), stable=True)
    bounds = segment_starts(kind_N, 2 * num_features)
    starts_F1, nears_F1 = bounds[: num_features + 1], bounds[num_features:]
    return starts_F1, nears_F1, token_N[order_N].int(), layer.value_N[order_N], layer.slot_N[order_N]
