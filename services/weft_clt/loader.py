"""
One rank's batches of a shuffled dataset, read ahead in the background and resumable at the very token.

    Dealer (which rows) -> reads and decodes in threads, a few row groups ahead -> rows of codes -> device -> Batch

Threads spend their time in the network, in zstd, SHA-256 and numpy, all of which let others run. For a GPU, another
thread moves the next batch there while this one is used (`staging`).
Shapes: O tokens of this rank's batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weft_clt.data import BatchBuffer, CodedRowGroup, RowGroup, RowGroupSource
from weft_clt.dealing import Dealer, Piece, own_pieces
from weft_clt.normalization import Normalization
from weft_clt.staging import HostStaging, Staging
from weft_clt.trainer import Batch
from weft_common.errors import FailedPreconditionError

__all__ = ["LoaderOptions", "TokenLoader"]


@dataclass(frozen=True)
class LoaderOptions:
    """
    How much is read ahead and mixed.

    Args:
        num_streams: Row groups that a step's tokens come from, over all ranks; they are in memory, as codes.
        ahead_bytes: Bytes of codes that a rank reads ahead of them; one row group always is, and never more than it
            mixes.
        read_threads: Row groups that are read at once.
    """

    num_streams: int = 16
    ahead_bytes: int = 64 << 20
    read_threads: int = 2


@dataclass(frozen=True)
class _Planned:
    """A batch to come: this rank's pieces, and the dealer's state after the last whole step."""

    pieces: list[Piece]
    after: dict[str, Any]


@dataclass(frozen=True)
class _Filled:
    """A batch that is there."""

    planned: _Planned
    buffer: BatchBuffer
    num_tokens: int


class TokenLoader:
    """
    Draws one rank's tokens of every step.

    Args:
        source: The whole training split.
        step_tokens: Tokens of a step, over all ranks.
        rank: This one, which takes the places from rank x O on.
        world_size: Ranks in all; they decide nothing but who takes which tokens of a step.
        passes: Batches that a step's tokens come in, one after the other; they decide nothing but the batches' size.
        staging: The way to where batches are made; by default they stay on the host.
    """

    def __init__(
        self,
        source: RowGroupSource,
        normalization: Normalization,
        *,
        step_tokens: int,
        rank: int,
        world_size: int,
        options: LoaderOptions,
        passes: int = 1,
        staging: Staging | None = None,
    ) -> None:
        self._source, self._options, self._passes = source, options, passes
        own = step_tokens // world_size
        self._first, self._last = rank * own, (rank + 1) * own
        self._dealer = Dealer(source.at, step_tokens=step_tokens, num_streams=options.num_streams)
        self._state = self._dealer.state()
        self._planned: deque[_Planned] = deque()
        self._reads: dict[tuple[int, int], Future[CodedRowGroup]] = {}
        self._orders: dict[tuple[int, int], np.ndarray[Any, np.dtype[np.int64]]] = {}
        self._row_group_bytes = 0
        self._drawn: list[Piece] = []
        self._staging = staging or HostStaging()
        num_buffers = 2 if self._staging.ahead else 1
        self._buffers = deque(BatchBuffer(normalization, own // passes, self._staging) for _ in range(num_buffers))
        self._next: Future[_Filled] | None = None
        self._unplanned: int | None = None
        """Steps that are yet to be planned; None where there is no end."""
        self._threads = ThreadPoolExecutor(options.read_threads, thread_name_prefix="reads")
        self._filler = ThreadPoolExecutor(1, thread_name_prefix="batches")

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs, as plain JSON values; the same on every rank."""
        return self._state

    def restore(self, state: dict[str, Any]) -> None:
        """Go to where a loader of the same dataset was, whatever its number of ranks."""
        self._dealer.restore(state)
        self._state, self._next = state, None
        self._planned.clear()

    def end_after(self, num_steps: int) -> None:
        """Draw so many steps from here on: what lies beyond is neither planned nor read, nor is its epoch begun."""
        self._unplanned = num_steps

    def close(self) -> None:
        """Give up what is being read ahead."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._filler.shutdown(wait=False, cancel_futures=True)

    def draw(self) -> Batch:
        """
        Return the next batch; its tensors are overwritten by the next draw.

        Raises:
            FailedPreconditionError: The split has no tokens, or all steps were drawn.
            DataLossError, UnavailableError: A row group cannot be read.
        """
        if self._next is None and not self._planned and self._unplanned == 0:
            raise FailedPreconditionError("All steps of the run were drawn; no batch is left.")
        filled = self._next.result() if self._next is not None else self._begin()()
        self._state, self._drawn = filled.planned.after, filled.planned.pieces
        self._forget()
        self._next = None
        if self._staging.ahead and (self._planned or self._unplanned != 0):
            self._next = self._filler.submit(self._begin())
        return filled.buffer.batch(filled.num_tokens)

    def _begin(self) -> Callable[[], _Filled]:
        """Plan the next batch; what is returned waits for its reads and fills the buffer that was used longest ago."""
        self._look_ahead()
        planned, buffer = self._planned.popleft(), self._buffers[0]
        self._buffers.rotate(-1)
        parts = [(self._reads[piece.row_group.key], self._rows(piece)) for piece in planned.pieces]
        self._staging.release()

        def fill() -> _Filled:
            filled = 0
            with self._staging.filling():
                for read, rows_N in parts:
                    coded = read.result()
                    self._row_group_bytes = max(self._row_group_bytes, coded.nbytes)
                    filled = buffer.fill(filled, coded, rows_N)
            return _Filled(planned, buffer, filled)

        return fill

    def is_finite(self) -> bool:
        """Whether all numbers of the batch that was drawn last are finite, in the units of training."""
        extremes = [edge for values_LOD in self._values() for edge in torch.aminmax(values_LOD)]
        return bool(torch.stack(extremes).isfinite().all())

    def find_not_finite(self) -> tuple[int, int, int, int, int] | None:
        """
        Look through the batch that was drawn last for a value that is not finite.

        Returns:
            Epoch and position of its row group, row there, 0 for inputs or 1 for outputs, layer; None where there is
            none.
        """
        for stream, values_LOD in enumerate(self._values()):
            broken = (~values_LOD.isfinite().all(2)).nonzero()
            if not broken.shape[0]:
                continue
            layer, place = (int(index) for index in broken[0])
            for piece in self._drawn:
                if place < piece.size:
                    row = int(piece.row_group.order()[piece.start + place])
                    return *piece.row_group.key, row, stream, layer
                place -= piece.size
        return None

    def _values(self) -> tuple[Tensor, Tensor]:
        drawn = self._buffers[-2 if self._next is not None else -1]
        return drawn.inputs_LOD, drawn.targets_LOD

    def _look_ahead(self) -> None:
        """Plan steps, and read what they need, until enough is read ahead of the next one."""
        if not self._planned:
            self._plan()
        wanted = {piece.row_group.key for piece in self._planned[0].pieces}
        while self._unplanned != 0:
            held = len({row_group.key for row_group in self._dealer.held(self._first, self._last)} | wanted)
            # Until one was read nobody knows how large they are.
            fitting = self._options.ahead_bytes // self._row_group_bytes if self._row_group_bytes else 1
            if len(self._reads.keys() - wanted) >= max(1, min(held, fitting)):
                return
            self._plan()

    def _plan(self) -> None:
        if self._unplanned is not None:
            self._unplanned -= 1
        before = self._dealer.state()
        pieces = list(own_pieces(self._dealer.deal(), self._first, self._last))
        after, size = self._dealer.state(), (self._last - self._first) // self._passes
        for number in range(self._passes):
            own = list(own_pieces(pieces, number * size, (number + 1) * size))
            self._planned.append(_Planned(own, after if number + 1 == self._passes else before))
        for piece in pieces:
            self._read(piece.row_group)

    def _read(self, row_group: RowGroup) -> None:
        if row_group.key not in self._reads:
            self._reads[row_group.key] = self._threads.submit(self._source.read, row_group)

    def _rows(self, piece: Piece) -> np.ndarray[Any, np.dtype[np.int64]]:
        key = piece.row_group.key
        if key not in self._orders:
            self._orders[key] = piece.row_group.order()
        return self._orders[key][piece.start : piece.stop]

    def _forget(self) -> None:
        """Free the row groups that neither a planned step nor a stream of this rank takes rows of."""
        kept = {row_group.key for row_group in self._dealer.held(self._first, self._last)}
        kept |= {piece.row_group.key for step in self._planned for piece in step.pieces}
        for key in self._reads.keys() - kept:
            del self._reads[key]
            self._orders.pop(key, None)
