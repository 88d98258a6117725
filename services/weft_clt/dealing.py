"""
Which tokens make which step: a shuffle over the whole dataset that no number of ranks can change.

The row groups of an epoch come in one random order over all shards. They are dealt to a fixed number of streams: each
holds one row group, gives the same number of its rows to every step, in the random order of its seed, and takes the
next row group of the dataset once it has none left. So a step's tokens come from as many places of the dataset as there
are streams, every token is given once an epoch, and an epoch goes over into the next within a step.
The first row groups are cut at different lengths, and their rests go to the first stream, one after the other;
otherwise all streams would run out in the same step, and all reads would be wanted at once.
Whatever is here is integers, the same on every rank. A rank takes a run of the step's places: see `own_pieces`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from weft_clt.data import RowGroup
from weft_common.errors import FailedPreconditionError

__all__ = ["Dealer", "Piece", "own_pieces"]


@dataclass(frozen=True)
class Piece:
    """Rows `start` to `stop`, in the order of a row group's seed."""

    row_group: RowGroup
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of rows."""
        return self.stop - self.start


def own_pieces(pieces: Iterable[Piece], first: int, last: int) -> Iterator[Piece]:
    """
    Cut from a step's pieces what stands at the places `first` to `last`, exclusive.

    >>> group = RowGroup(0, 0, 8, 0, None)
    >>> [(p.start, p.stop) for p in own_pieces([Piece(group, 0, 4), Piece(group, 4, 8)], 3, 6)]
    [(3, 4), (4, 6)]
    """
    place = 0
    for piece in pieces:
        low, high = max(first - place, 0), min(last - place, piece.size)
        if low < high:
            yield replace(piece, start=piece.start + low, stop=piece.start + high)
        place += piece.size


class Dealer:
    """
    Deals a split to steps.

    Args:
        at: The plan: `RowGroupSource.at` of the whole split.
        step_tokens: Tokens of a step, over all ranks.
        num_streams: From how many row groups a step takes its tokens; fewer where it has fewer tokens.
    """

    def __init__(self, at: Callable[[int, int], RowGroup | None], *, step_tokens: int, num_streams: int) -> None:
        self._at, self._step_tokens = at, step_tokens
        self._epoch, self._position = 0, 0
        self._rests: deque[Piece] = deque()
        self._streams: list[Piece | None] = [None] * min(num_streams, step_tokens)
        self._started = False

    def place(self, stream: int) -> int:
        """The first place of a step that a stream fills; of the number of streams, how many places there are."""
        return self._step_tokens * stream // len(self._streams)

    def held(self, first: int, last: int) -> Iterator[RowGroup]:
        """Name the row groups that are held by the streams that fill the places `first` to `last`, exclusive."""
        for stream, piece in enumerate(self._streams):
            if piece is not None and self.place(stream) < last and self.place(stream + 1) > first:
                yield piece.row_group

    def deal(self) -> list[Piece]:
        """
        Return the pieces of the next step, in the order of their places.

        Raises:
            FailedPreconditionError: There are no tokens.
        """
        if not self._started:
            self._cut_first()
        dealt: list[Piece] = []
        for stream in range(len(self._streams)):
            wanted = self.place(stream + 1) - self.place(stream)
            while wanted:
                piece = self._streams[stream] or self._next(stream)
                taken = min(wanted, piece.size)
                dealt.append(replace(piece, stop=piece.start + taken))
                wanted -= taken
                self._streams[stream] = replace(piece, start=piece.start + taken) if taken < piece.size else None
        return dealt

    def _cut_first(self) -> None:
        """Give stream s of n the first (s + 1) / n of a row group."""
        self._started = True
        for stream in range(len(self._streams)):
            piece = self._next_whole()
            cut = piece.size * (stream + 1) // len(self._streams)
            self._streams[stream] = replace(piece, stop=cut) if cut else None
            if cut < piece.size:
                self._rests.append(replace(piece, start=cut))

    def _next(self, stream: int) -> Piece:
        return self._rests.popleft() if self._rests and not stream else self._next_whole()

    def _next_whole(self) -> Piece:
        while True:
            row_group = self._at(self._epoch, self._position)
            if row_group is None:
                self._turn_epoch()
                continue
            self._position += 1
            if row_group.num_tokens:
                return Piece(row_group, 0, row_group.num_tokens)

    def _turn_epoch(self) -> None:
        """Go to the next epoch, where this one had any tokens."""
        for position in range(self._position):
            row_group = self._at(self._epoch, position)
            if row_group is not None and row_group.num_tokens:
                self._epoch, self._position = self._epoch + 1, 0
                return
        raise FailedPreconditionError("The training split has no tokens; harvest a corpus that has some.")

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs, as plain JSON values."""
        return {
            "epoch": self._epoch,
            "position": self._position,
            "rests": [_written(piece) for piece in self._rests],
            "streams": [None if piece is None else _written(piece) for piece in self._streams],
            "started": self._started,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go to where a dealer over the same plan was; the number of streams is the state's."""
        self._epoch, self._position, self._started = state["epoch"], state["position"], state["started"]
        self._rests = deque(self._read(*rest) for rest in state["rests"])
        self._streams = [None if stream is None else self._read(*stream) for stream in state["streams"]]

    def _read(self, epoch: int, position: int, start: int, stop: int) -> Piece:
        row_group = self._at(epoch, position)
        if row_group is None or row_group.num_tokens < stop:
            raise FailedPreconditionError(
                f"The checkpoint was reading row group {position} of epoch {epoch}, which the plan lacks; "
                "resume with the dataset that the run was started with."
            )
        return Piece(row_group, start, stop)


def _written(piece: Piece) -> list[int]:
    return [piece.row_group.epoch, piece.row_group.position, piece.start, piece.stop]
