"""
The one exchange of a forward pass: which features are active, and how strongly.

Every rank lists the entries of its own features; all ranks of a group learn all lists. The same lists, walked back,
take the gradient of every value to the rank that owns the feature. Neither activations nor outputs travel.
On the wire an entry takes 2 bytes for its feature (4 beyond 65,536 features) and 4 (float64: 8) for its value.
Everything stays on the device that it is computed on, but for the lengths of the lists.
Shapes: L layers, T tokens, R ranks of the group, N entries of a layer over all ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from weft_clt.active import ActiveLayer
from weft_clt.kernels import Kernels
from weft_clt.mesh import Axis, Pending
from weft_common.errors import ShapeError

__all__ = ["Exchanged", "OwnEntries", "Returning", "check_places", "exchange_entries"]

_MOST_ENTRIES = (1 << 31) - 1


def check_places(num_entries: int) -> None:
    """Refuse more entries of a step than int32 has places for. ShapeError."""
    if num_entries > _MOST_ENTRIES:
        raise ShapeError(
            f"{num_entries} features are active over the tokens and layers of a group's step, more than the "
            f"{_MOST_ENTRIES} that can be told apart; lower step_tokens, or raise data_ranks."
        )


@dataclass(frozen=True)
class OwnEntries:
    """What this rank lists of one layer, by token and, within it, by feature."""

    counts_T: Tensor
    """Entries of a token, int32."""
    feature_M: Tensor
    """Among this rank's features, int64."""
    value_M: Tensor
    """Post-activation."""
    preact_M: Tensor | None = None
    """Pre-activation, where JumpReLU's backward pass needs it."""


@dataclass(frozen=True)
class Returning:
    """Gradients of this rank's values, on their way from all ranks of the group."""

    pending: Pending
    parts_RM: Tensor
    own_sizes_L: list[int]

    def wait(self) -> list[Tensor]:
        """Return their sums over ranks: one tensor a layer, in the order of the rank's own entries."""
        self.pending.wait()
        total_M = self.parts_RM.sum(0) if self.parts_RM.shape[0] > 1 else self.parts_RM[0]
        return list(torch.split(total_M, self.own_sizes_L))


@dataclass(frozen=True)
class Exchanged:
    """The joint lists, and the way back."""

    layers: list[ActiveLayer]
    sizes_R: list[int]
    """Entries that each rank listed, over all layers."""
    own_sizes_L: list[int]

    def return_gradients(self, grad_slots: Tensor, axis: Axis) -> Returning:
        """
        Start to send the gradients of all ranks' values to their owners.

        Args:
            grad_slots: This rank's part, by the slots of the entries; 0 where an entry was not kept.

        Collectives: starts one exchange on the feature axis.
        """
        own = sum(self.own_sizes_L)
        parts = grad_slots.new_empty(axis.size * own)
        pending = axis.start_exchange(parts, grad_slots, [own] * axis.size, self.sizes_R)
        return Returning(pending, parts.view(axis.size, own), self.own_sizes_L)


@dataclass(frozen=True)
class _Padded:
    """Lists of different lengths that are gathered, as bytes."""

    pending: Pending | None
    gathered: Tensor
    sizes_R: list[int]

    @classmethod
    def start(cls, own: Tensor, sizes_R: list[int], axis: Axis) -> _Padded:
        """Start to gather; one rank's list stays where it is."""
        if axis.size == 1:
            return cls(None, own[None], sizes_R)
        padded = own.new_empty(max(1, *sizes_R))  # an empty tensor has no bytes to view
        padded[: own.shape[0]] = own
        gathered = padded.new_empty(axis.size, padded.shape[0])
        pending = axis.start_gather_into(gathered.view(torch.uint8), padded.view(torch.uint8))
        return cls(pending, gathered, sizes_R)

    def wait(self) -> list[Tensor]:
        """Return every rank's list."""
        if self.pending is not None:
            self.pending.wait()
        return [self.gathered[rank, :size] for rank, size in enumerate(self.sizes_R)]


def _to_wire(feature_M: Tensor, first: int, *, narrow: bool) -> Tensor:
    """
    Number a rank's own features over all ranks, in 2 bytes or in 4; overwrites them.

    int16 holds the 16 bits of an unsigned number, a type that few devices compute with.
    """
    return feature_M.add_(first).to(torch.int16 if narrow else torch.int32)


def _from_wire(wire_M: Tensor) -> Tensor:
    """
    Return features as int32.

    >>> _from_wire(_to_wire(torch.tensor([7, 65_000]), 535, narrow=True)).tolist()
    [542, 65535]
    """
    return wire_M.int().bitwise_and_(0xFFFF) if wire_M.dtype is torch.int16 else wire_M


def exchange_entries(
    own_L: list[OwnEntries], axis: Axis, kernels: Kernels, *, num_features: int, rank_features: int, top_k: int
) -> Exchanged:
    """
    Join the lists of all ranks of a group.

    Args:
        num_features: F, over all ranks.
        rank_features: Features of one rank.
        top_k: Keep this many of a token and layer, over all ranks; 0 keeps all.

    Raises:
        ShapeError: See `check_places`; on all ranks alike.

    Collectives: three gathers on the feature axis.
    """
    counts_LT = torch.stack([own.counts_T for own in own_L])
    counts_RLT = counts_LT.new_empty(axis.size, *counts_LT.shape)
    counting = axis.start_gather_into(counts_RLT, counts_LT)
    narrow = axis.size > 1 and num_features <= 1 << 16
    wire = _to_wire(torch.cat([own.feature_M for own in own_L]), axis.rank * rank_features, narrow=narrow)
    own_value = torch.cat([own.value_M for own in own_L])
    counting.wait()
    sizes_RL = axis.read(counts_RLT.sum(2)).tolist()
    sizes_R = [sum(sizes_L) for sizes_L in sizes_RL]
    check_places(sum(sizes_R))
    naming = _Padded.start(wire, sizes_R, axis)
    valuing = _Padded.start(own_value, sizes_R, axis)
    features_R = [_from_wire(part) for part in naming.wait()]
    values_R = valuing.wait()

    layers: list[ActiveLayer] = []
    starts_R = list(accumulate([0, *sizes_R[:-1]]))
    done_R = [0] * axis.size
    for layer in range(len(own_L)):
        runs = [slice(done, done + sizes[layer]) for done, sizes in zip(done_R, sizes_RL, strict=True)]
        layers.append(
            kernels.merge(
                counts_RLT[:, layer].contiguous(),
                [feature[run] for feature, run in zip(features_R, runs, strict=True)],
                [value[run] for value, run in zip(values_R, runs, strict=True)],
                [start + done for start, done in zip(starts_R, done_R, strict=True)],
                num_features=num_features,
                top_k=top_k,
            )
        )
        done_R = [run.stop for run in runs]
    return Exchanged(layers, sizes_R, sizes_RL[axis.rank])
