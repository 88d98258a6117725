"""
The entries of a whole pass by feature, which is how the decoder's rows meet them.

Shapes: L layers, F features of a layer over all ranks, N entries of all layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from weft_clt.active import ActiveLayer
from weft_clt.kernels import loops
from weft_clt.kernels.sorted_lists import by_feature

__all__ = ["DecoderPairs", "FeatureLists"]


@dataclass(frozen=True)
class DecoderPairs:
    """Which source layer writes to which target layer, and with which block of the decoder."""

    num_layers: int
    pairs_P3: Tensor
    """(source, target, block), int64, sorted by target and then by source."""

    @classmethod
    def of(cls, num_layers: int, blocks: list[tuple[int, int]]) -> DecoderPairs:
        """
        Sort the (source, target) of blocks, which are given in the order of the decoder's first dim.

        >>> DecoderPairs.of(2, [(0, 0), (0, 1), (1, 1)]).pairs_P3.tolist()
        [[0, 0, 0], [0, 1, 1], [1, 1, 2]]
        """
        rows = sorted((target, source, block) for block, (source, target) in enumerate(blocks))
        return cls(num_layers, torch.tensor([[source, target, block] for target, source, block in rows]))

    def rows(self) -> list[tuple[int, int, int]]:
        """Return (source, target, block) as integers."""
        return [(source, target, block) for source, target, block in self.pairs_P3.tolist()]


@dataclass(frozen=True)
class FeatureLists:
    """
    All layers' entries, layer after layer; of each layer those above 0 by feature, then those at 0 by feature.

    Those at 0 are near their threshold, often many times as many, and only gradients of values and thresholds ask for
    them: apart from the others they do not come between these in memory.
    """

    layers: list[ActiveLayer]
    start_LF1: Tensor
    """First of a feature's entries above 0, over all layers, int32; one more closes them."""
    near_LF1: Tensor
    """First of a feature's entries at 0, int32; one more closes them."""
    token_N: Tensor
    """int32."""
    value_N: Tensor
    slot_N: Tensor
    """Place of an entry in the list that ranks exchange, int32."""

    def part(self, layer: int) -> slice:
        """Return where a layer's entries are."""
        first = sum(before.value_N.shape[0] for before in self.layers[:layer])
        return slice(first, first + self.layers[layer].value_N.shape[0])

    @classmethod
    def of(cls, layers: list[ActiveLayer], *, near_slots: bool = True) -> FeatureLists:
        """
        Sort the entries of every layer by feature; tokens ascend within each.

        Args:
            near_slots: Whether entries at 0 are asked for one by one; otherwise they may all have slot 0.
        """
        value_N = layers[0].value_N
        if value_N.device.type != "cpu" or value_N.dtype is torch.bfloat16:  # which NumPy does not have
            return cls._sorted_by_torch(layers)
        num_layers, num_features = len(layers), layers[0].num_features
        total = sum(layer.value_N.shape[0] for layer in layers)
        lists = cls(
            layers=layers,
            start_LF1=torch.empty(num_layers, num_features + 1, dtype=torch.int32),
            near_LF1=torch.empty(num_layers, num_features + 1, dtype=torch.int32),
            token_N=torch.empty(total, dtype=torch.int32),
            value_N=torch.empty(total, dtype=layers[0].value_N.dtype),
            slot_N=torch.empty(total, dtype=torch.int32),
        )
        first = 0
        for index, layer in enumerate(layers):
            loops.feature_order(
                first, layer.row_start_T1.numpy(), layer.row_active_T.numpy(), layer.feature_N.numpy(),
                layer.value_N.numpy(), layer.slot_N.numpy(), lists.start_LF1[index].numpy(),
                lists.near_LF1[index].numpy(), lists.token_N.numpy(), lists.value_N.numpy(), lists.slot_N.numpy(),
                near_slots,
            )  # fmt: skip
            first += layer.value_N.shape[0]
        return lists

    @classmethod
    def _sorted_by_torch(cls, layers: list[ActiveLayer]) -> FeatureLists:
        start_L, near_L, token_L, value_L, slot_L = zip(*(by_feature(layer) for layer in layers), strict=True)
        firsts = [0, *accumulate(layer.value_N.shape[0] for layer in layers[:-1])]
        return cls(
            layers=layers,
            start_LF1=torch.stack([start_F1 + first for start_F1, first in zip(start_L, firsts, strict=True)]),
            near_LF1=torch.stack([near_F1 + first for near_F1, first in zip(near_L, firsts, strict=True)]),
            token_N=torch.cat(token_L),
            value_N=torch.cat(value_L),
            slot_N=torch.cat(slot_L),
        )
