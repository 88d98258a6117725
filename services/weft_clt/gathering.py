"""
The data of a step on its way to the ranks of a group, while they encode what is there already.

Every rank receives the inputs of all of the group's tokens, and of the targets its own columns. Layers travel in their
order, a few at a time: more would only hold more copies of targets, which are laid out by rank before they are sent.
Shapes: T tokens of the group, O tokens of one rank, L layers, D d_model, C columns of this rank, R ranks of the group.
"""

from __future__ import annotations

from collections import deque

from torch import Tensor

from weft_clt.mesh import Axis, Pending

__all__ = ["LAYERS_UNDER_WAY", "Gathering"]

LAYERS_UNDER_WAY = 2
"""One that the next encoder waits for, and one behind it, so that the network is never idle."""


class Gathering:
    """
    One step's gathering; a rank that is its group has everything already.

    Args:
        inputs_LOD: This rank's tokens; unchanged until all layers are there.
        targets_LOD: Of the same tokens.
        inputs_LTD: Written; of one rank alone, its own.
        targets_LTC: Likewise.
    Collectives: starts one gather and one exchange a layer, on the feature axis.
    """

    def __init__(
        self, axis: Axis, inputs_LOD: Tensor, targets_LOD: Tensor, inputs_LTD: Tensor, targets_LTC: Tensor
    ) -> None:
        self._axis, self._inputs_LOD, self._targets_LOD = axis, inputs_LOD, targets_LOD
        self.inputs_LTD, self.targets_LTC = inputs_LTD, targets_LTC
        self._num_there = self._num_started = 0 if axis.size > 1 else inputs_LTD.shape[0]
        self._under_way: deque[tuple[Pending, Pending]] = deque()
        self._start_more()

    def wait_for(self, layer: int) -> None:
        """Return once a layer's inputs and targets are there, and those of all layers before it."""
        while self._num_there <= layer:
            for pending in self._under_way.popleft():
                pending.wait()
            self._num_there += 1
            self._start_more()

    def wait(self) -> None:
        """Return once all layers are there."""
        self.wait_for(self.inputs_LTD.shape[0] - 1)

    def _start_more(self) -> None:
        while len(self._under_way) < LAYERS_UNDER_WAY and self._num_started < self.inputs_LTD.shape[0]:
            self._under_way.append(self._start(self._num_started))
            self._num_started += 1

    def _start(self, layer: int) -> tuple[Pending, Pending]:
        axis, (rank_tokens, _) = self._axis, self._inputs_LOD[layer].shape
        group_tokens, num_columns = self.targets_LTC[layer].shape
        inputs = axis.start_gather_into(self.inputs_LTD[layer], self._inputs_LOD[layer].contiguous())
        by_rank_ROC = self._targets_LOD[layer].view(rank_tokens, axis.size, num_columns).transpose(0, 1)
        rows = [rank_tokens] * axis.size
        targets = axis.start_exchange(
            self.targets_LTC[layer], by_rank_ROC.reshape(group_tokens, num_columns), rows, rows
        )
        return inputs, targets
