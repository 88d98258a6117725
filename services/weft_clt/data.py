"""
From row groups in storage to shuffled batches, resumable at the very token.

    slices (planned elsewhere) -> a pool of row groups -> tokens drawn at random from all of them -> normalised batches

A row group's rows leave the pool in an order fixed by its slice's seed, and how many of a draw come from which row
group is a function of the seed, the rank and the number of draws so far. So the whole state is a few integers.
Shapes: L layers, T tokens of a row group, O tokens of a batch, D d_model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from weft_clt.normalization import Normalization
from weft_clt.trainer import Batch
from weft_common.errors import FailedPreconditionError

__all__ = ["RowGroup", "RowGroupSource", "TokenPool", "held_out_batches"]

Activations = NDArray[np.float32]


@dataclass(frozen=True)
class RowGroup:
    """A row group that a rank is to read; `where` is for its source only."""

    epoch: int
    position: int
    num_tokens: int
    seed: int
    where: Any


class RowGroupSource(Protocol):
    """One rank's share of a dataset's split."""

    def at(self, epoch: int, position: int) -> RowGroup | None:
        """Return the row group at a position of an epoch's plan; None past its end."""
        ...

    def read(self, row_group: RowGroup) -> tuple[Activations, Activations]:
        """Read inputs and outputs, float32, [L, T, D] each."""
        ...


@dataclass
class _Slot:
    row_group: RowGroup
    inputs_LTD: Activations
    outputs_LTD: Activations
    order_T: NDArray[np.int64] = field(init=False)
    taken: int = 0

    def __post_init__(self) -> None:
        random = np.random.Generator(np.random.Philox(key=self.row_group.seed))
        self.order_T = random.permutation(self.row_group.num_tokens)

    @property
    def left(self) -> int:
        return self.row_group.num_tokens - self.taken


class TokenPool:
    """
    Draws batches of one rank's tokens.

    Args:
        seed: With `rank`, decides the draws.
        num_row_groups: How many row groups are mixed; they are all in memory.
    """

    def __init__(
        self,
        source: RowGroupSource,
        normalization: Normalization,
        *,
        batch_tokens: int,
        seed: int,
        rank: int,
        num_row_groups: int,
    ) -> None:
        self._source, self._normalization = source, normalization
        self._batch_tokens, self._num_row_groups = batch_tokens, num_row_groups
        self._key = (seed, rank)
        self._slots: list[_Slot] = []
        self._draws, self._epoch, self._position = 0, 0, 0
        num_layers, d_model = normalization.input_mean_LD.shape
        self._batch = Batch(
            torch.zeros(num_layers, batch_tokens, d_model), torch.zeros(num_layers, batch_tokens, d_model), batch_tokens
        )

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs, as plain JSON values."""
        slots = [[slot.row_group.epoch, slot.row_group.position, slot.taken] for slot in self._slots]
        return {"draws": self._draws, "epoch": self._epoch, "position": self._position, "slots": slots}

    def restore(self, state: dict[str, Any]) -> None:
        """Go to where a pool of the same source, seed and rank was; its row groups are read again."""
        self._draws, self._epoch, self._position = state["draws"], state["epoch"], state["position"]
        self._slots = []
        for epoch, position, taken in state["slots"]:
            row_group = self._source.at(epoch, position)
            if row_group is None:
                raise FailedPreconditionError(
                    f"The checkpoint was reading row group {position} of epoch {epoch}, which the plan lacks; "
                    "resume with the dataset and the number of ranks that the run was started with."
                )
            slot = _Slot(row_group, *self._source.read(row_group))
            slot.taken = taken
            self._slots.append(slot)

    def draw(self) -> Batch:
        """
        Return the next batch; its tensors are overwritten by the next draw.

        Raises:
            FailedPreconditionError: This rank's share of the dataset has no tokens.
        """
        self._fill()
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence([*self._key, self._draws])))
        self._draws += 1
        start = 0
        for slot, count in self._shares(random):
            rows = slot.order_T[slot.taken : slot.taken + count]
            _copy_rows(self._batch, start, slot.inputs_LTD, slot.outputs_LTD, rows, self._normalization)
            slot.taken += count
            start += count
        self._slots = [slot for slot in self._slots if slot.left]
        return self._batch

    def _shares(self, random: np.random.Generator) -> Iterator[tuple[_Slot, int]]:
        """Say how many tokens come from which slot, as if all that is left were drawn from without putting back."""
        left = [slot.left for slot in self._slots]
        counts = random.multivariate_hypergeometric(left, self._batch_tokens, method="marginals")
        for slot, count in zip(self._slots, counts.tolist(), strict=True):
            if count:
                yield slot, count

    def _whole_epoch(self) -> Iterator[RowGroup]:
        position = 0
        while (row_group := self._source.at(self._epoch, position)) is not None:
            yield row_group
            position += 1

    def _fill(self) -> None:
        while len(self._slots) < self._num_row_groups or sum(slot.left for slot in self._slots) < self._batch_tokens:
            row_group = self._source.at(self._epoch, self._position)
            if row_group is None:
                if not any(found.num_tokens for found in self._whole_epoch()):
                    raise FailedPreconditionError(
                        "This rank's share of the training split has no tokens; harvest more, or use fewer ranks."
                    )
                self._epoch, self._position = self._epoch + 1, 0
                continue
            self._position += 1
            if row_group.num_tokens:
                self._slots.append(_Slot(row_group, *self._source.read(row_group)))


def _copy_rows(
    batch: Batch,
    start: int,
    inputs_LTD: Activations,
    outputs_LTD: Activations,
    rows: NDArray[np.int64],
    normalization: Normalization,
) -> None:
    stop = start + rows.size
    for batch_LOD, values_LTD, scale_L in (
        (batch.inputs_LOD, inputs_LTD, normalization.input_scale_L),
        (batch.targets_LOD, outputs_LTD, normalization.output_scale_L),
    ):
        out_LOD = batch_LOD.numpy()
        for layer in range(out_LOD.shape[0]):
            np.multiply(values_LTD[layer, rows], np.float32(scale_L[layer]), out=out_LOD[layer, start:stop])


def held_out_batches(
    source: RowGroupSource, normalization: Normalization, *, batch_tokens: int, most_tokens: int
) -> Iterator[Batch]:
    """
    Yield a split in its plan's order, once; when it ends, go on with batches that have no valid row.

    Args:
        most_tokens: Stop after this many of this rank's tokens.
    """
    num_layers, d_model = normalization.input_mean_LD.shape
    shape = (num_layers, batch_tokens, d_model)
    inputs_LOD, targets_LOD = torch.zeros(shape), torch.zeros(shape)
    position, filled, given = 0, 0, 0
    while given < most_tokens and (row_group := source.at(0, position)) is not None:
        position += 1
        if not row_group.num_tokens:
            continue
        inputs_LTD, outputs_LTD = source.read(row_group)
        rows = np.arange(row_group.num_tokens)
        rows = rows[: most_tokens - given]
        given += rows.size
        while rows.size:
            now, rows = rows[: batch_tokens - filled], rows[batch_tokens - filled :]
            _copy_rows(Batch(inputs_LOD, targets_LOD, 0), filled, inputs_LTD, outputs_LTD, now, normalization)
            filled += now.size
            if filled == batch_tokens:
                yield Batch(inputs_LOD, targets_LOD, filled)
                filled = 0
    while True:
        yield Batch(inputs_LOD, targets_LOD, filled)
        filled = 0
