"""
Finds the rank that the others wait for.

Every rank notes, from a thread, how many collectives it has entered. One that is in a collective for too long reads
the notes of all: whoever has entered fewest has not come. It tells who that is and ends, which ends the attempt.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Protocol

from weft_clt.mesh import Progress

__all__ = ["Notes", "Watchdog", "verdict"]

_MOST_INTERVAL_S = 5.0


class Notes(Protocol):
    """Where ranks leave notes for each other: torch.distributed's Store, as far as it is needed."""

    def set(self, key: str, value: str, /) -> None:
        """Leave a note."""
        ...

    def get(self, key: str, /) -> bytes:
        """Read a note, waiting for it."""
        ...

    def set_timeout(self, timeout: timedelta, /) -> None:
        """Bound the wait."""
        ...


def verdict(entered: Sequence[int | None], rank: int, waited_s: float) -> str:
    """
    Say who keeps a rank waiting.

    Args:
        entered: Collectives that each rank has entered; None where its note could not be read, never this rank's.

    >>> verdict([7, 6, 7], 0, 60).split(";")[0]
    'rank 1 has not come to what rank 0 has been waiting in for 60 s'
    """
    # Whoever waits for the one that has not come is behind others too, but not as far.
    counts = [-1 if count is None else count for count in entered]
    behind = [other for other, count in enumerate(counts) if count == min(counts) < counts[rank]]
    if not behind:
        return (
            f"rank {rank} has been waiting for {waited_s:.0f} s in a collective that all ranks have entered: "
            "look at the network between their machines."
        )
    who = f"rank {behind[0]} has" if len(behind) == 1 else f"ranks {', '.join(map(str, behind))} have"
    return (
        f"{who} not come to what rank {rank} has been waiting in for {waited_s:.0f} s; look at the log and the machine "
        "of that rank."
    )


class Watchdog:
    """
    Watches one rank's collectives, from a thread that ends with the process.

    Args:
        progress: Of this rank.
        bound_s: Seconds in one collective that are too long.
        give_up: Called once, with what to tell; it ends the process.
    """

    def __init__(
        self,
        notes: Notes,
        progress: Progress,
        *,
        rank: int,
        world_size: int,
        bound_s: float,
        give_up: Callable[[str], None],
    ) -> None:
        self._notes, self._progress, self._give_up = notes, progress, give_up
        self._rank, self._world_size, self._bound_s = rank, world_size, bound_s
        self._interval_s = min(_MOST_INTERVAL_S, bound_s / 4)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        notes.set_timeout(timedelta(seconds=max(1.0, bound_s / 4)))

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """End, before what keeps the notes goes."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(2 * self._interval_s)

    def _run(self) -> None:
        while not self._ended.wait(self._interval_s):
            told = self.look()
            if told:
                self._give_up(told)
                return

    def look(self) -> str:
        """Note how far this rank is; say who keeps it waiting for too long, or nothing."""
        entered, since_s = self._progress.entered, self._progress.inside_since_s
        waited_s = 0.0 if since_s is None else time.monotonic() - since_s
        try:
            self._notes.set(str(self._rank), str(entered))
        except RuntimeError:
            # Rank 0's process keeps the notes, unless a launcher does; it may also have ended before this rank.
            return verdict(self._all_but_rank_0(entered), self._rank, waited_s) if waited_s >= self._bound_s else ""
        if waited_s < self._bound_s:
            return ""
        notes = [entered if other == self._rank else self._note(other) for other in range(self._world_size)]
        return verdict(notes, self._rank, waited_s)

    def _all_but_rank_0(self, entered: int) -> list[int | None]:
        return [None, *[entered] * (self._world_size - 1)]

    def _note(self, rank: int) -> int | None:
        try:
            return int(self._notes.get(str(rank)))
        except RuntimeError:
            return None
