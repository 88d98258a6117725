"""
Row groups of a dataset as codes, and what makes normalised batches of them on the training device.

Codes travel to the device as they are; the float conversion and the scale of training happen there, in the same code
on a CPU: one multiplication and one addition a value.
Shapes: L layers, T tokens of a row group, N rows that are taken of it, O tokens of a batch, D d_model,
C components.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weft_clt.normalization import Normalization
from weft_clt.staging import HostStaging, Staging
from weft_clt.trainer import Batch

__all__ = ["BatchBuffer", "CodedRowGroup", "CodedStream", "RowGroup", "RowGroupSource", "held_out_batches"]


@dataclass(frozen=True)
class RowGroup:
    """A row group that is to be read; `where` is for its source only."""

    epoch: int
    position: int
    num_tokens: int
    seed: int
    where: Any

    @property
    def key(self) -> tuple[int, int]:
        """What names it in a plan."""
        return self.epoch, self.position

    def order(self) -> NDArray[np.int64]:
        """The order in which its rows are taken, [T]; it follows from the seed."""
        return np.random.Generator(np.random.Philox(key=self.seed)).permutation(self.num_tokens)


@dataclass(frozen=True)
class CodedStream:
    """
    Codes of one stream; without step and mean they are the bits of bfloat16, as uint16.

    With a basis, float16 and the same array for many row groups, they are of components: C, which stand where channels
    do, are D in number.
    """

    codes_LTD: NDArray[Any]
    step_L: NDArray[np.float32] | None = None
    mean_LD: NDArray[np.float32] | None = None
    basis_LCD: NDArray[np.float16] | None = None


@dataclass(frozen=True)
class CodedRowGroup:
    """Both streams of a row group."""

    inputs: CodedStream
    outputs: CodedStream

    @property
    def nbytes(self) -> int:
        """Bytes of the codes."""
        return self.inputs.codes_LTD.nbytes + self.outputs.codes_LTD.nbytes


class RowGroupSource(Protocol):
    """A dataset's split, or a rank's share of it; called from several threads."""

    def at(self, epoch: int, position: int) -> RowGroup | None:
        """Return the row group at a position of an epoch's plan; None past its end."""
        ...

    def read(self, row_group: RowGroup) -> CodedRowGroup:
        """Read and decode. DataLossError where it is damaged."""
        ...

    def describe(self, row_group: RowGroup) -> str:
        """Name where a row group lies, for a message to a person."""
        ...


class BatchBuffer:
    """
    One batch on the device, filled piece by piece.

    Args:
        normalization: Units of training.
        batch_tokens: O.
        staging: The way to where the trainer wants its batches; by default they stay on the host.
    """

    def __init__(self, normalization: Normalization, batch_tokens: int, staging: Staging | None = None) -> None:
        num_layers, d_model = normalization.input_mean_LD.shape
        self._staging = staging or HostStaging()
        self._device = self._staging.device
        self._scales = (normalization.input_scale_L, normalization.output_scale_L)
        self.inputs_LOD = torch.zeros(num_layers, batch_tokens, d_model, device=self._device)
        self.targets_LOD = torch.zeros_like(self.inputs_LOD)
        # As large as thousands of tokens, so they go to the device once; both streams' of the last two bases.
        self._bases: deque[tuple[NDArray[np.float16], Tensor]] = deque(maxlen=4)

    def fill(self, start: int, coded: CodedRowGroup, rows_N: NDArray[np.int64]) -> int:
        """Write rows of a row group from `start` on, and return where they end."""
        stop = start + rows_N.size
        streams = ((self.inputs_LOD, coded.inputs), (self.targets_LOD, coded.outputs))
        for (out_LOD, stream), scale_L in zip(streams, self._scales, strict=True):
            self._dequantise(out_LOD[:, start:stop], stream, rows_N, scale_L)
        return stop

    def batch(self, num_valid: int) -> Batch:
        """Return the batch, whose tensors are overwritten by what is filled next."""
        return Batch(self.inputs_LOD, self.targets_LOD, num_valid)

    def _dequantise(
        self, out_LND: Tensor, stream: CodedStream, rows_N: NDArray[np.int64], scale_L: NDArray[np.float64]
    ) -> None:
        codes_LND = self._staging.moved(stream.codes_LTD, rows_N)
        if stream.step_L is None or stream.mean_LD is None:
            out_LND.copy_(codes_LND.view(torch.bfloat16))
            out_LND.mul_(self._moved(scale_L)[:, None, None])
            return
        factor_L, offset_LD = scale_L * stream.step_L, scale_L[:, None] * stream.mean_LD
        if stream.basis_LCD is not None:
            basis_LCD, moved_LD = self._basis(stream.basis_LCD), self._moved(offset_LD)
            for layer, out_ND in enumerate(out_LND):
                components_NC = codes_LND[layer].to(out_ND.dtype).mul_(float(factor_L[layer]))
                torch.addmm(moved_LD[layer], components_NC, basis_LCD[layer].to(out_ND.dtype), out=out_ND)
            return
        out_LND.copy_(codes_LND)
        torch.addcmul(
            self._moved(offset_LD)[:, None],
            out_LND,
            self._moved(factor_L)[:, None, None].expand_as(out_LND),
            out=out_LND,
        )

    def _basis(self, basis_LCD: NDArray[np.float16]) -> Tensor:
        for there, moved in self._bases:
            # Views of one array are many objects; what is held here keeps its address.
            if there.ctypes.data == basis_LCD.ctypes.data and there.shape == basis_LCD.shape:
                return moved
        # Read-only there, which torch does not know of.
        moved = torch.from_numpy(basis_LCD.copy()).to(self._device)
        self._bases.append((basis_LCD, moved))
        return moved

    def _moved(self, array: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(array.astype(np.float32)).to(self._device)


def held_out_batches(
    source: RowGroupSource,
    normalization: Normalization,
    *,
    batch_tokens: int,
    most_tokens: int,
    device: torch.device | None = None,
) -> Iterator[Batch]:
    """
    Yield a split in its plan's order, once; when it ends, go on with batches that have no valid row.

    Args:
        most_tokens: Stop after this many of this rank's tokens.
        device: Where batches are made, in the order of the caller's own work there.
    """
    buffer = BatchBuffer(normalization, batch_tokens, HostStaging(device))
    position, filled, given = 0, 0, 0
    while given < most_tokens and (row_group := source.at(0, position)) is not None:
        position += 1
        if not row_group.num_tokens:
            continue
        coded = source.read(row_group)
        rows = np.arange(min(row_group.num_tokens, most_tokens - given))
        given += rows.size
        while rows.size:
            now, rows = rows[: batch_tokens - filled], rows[batch_tokens - filled :]
            filled = buffer.fill(filled, coded, now)
            if filled == batch_tokens:
                yield buffer.batch(filled)
                filled = 0
    while True:
        yield buffer.batch(filled)
        filled = 0
