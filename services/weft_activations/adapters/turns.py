"""Batches of a harvest's turns: what goes together, and who takes which."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, wait

import numpy as np
import numpy.typing as npt

__all__ = ["TurnTaking", "batches_by_turn", "equal_lengths"]


def equal_lengths(lengths: Sequence[int], most_tokens: int) -> list[list[int]]:
    """
    Share sequences out over batches of one length and of `most_tokens` at most, or of one sequence; the longest first.

    >>> equal_lengths([4, 3, 4, 4], 8)
    [[0, 2], [3], [1]]
    """
    by_length: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        by_length.setdefault(length, []).append(index)
    batches = []
    for length, members in sorted(by_length.items(), reverse=True):
        size = max(1, most_tokens // length)
        batches += [members[first : first + size] for first in range(0, len(members), size)]
    return batches


def batches_by_turn(turns: Sequence[Sequence[npt.NDArray[np.int64]]], most_tokens: int) -> list[list[list[int]]]:
    """
    Share the sequences of each turn out; they are numbered through all turns.

    >>> batches_by_turn([[np.arange(4), np.arange(3)], [np.arange(4)]], 8)
    [[[0], [1]], [[2]]]
    """
    by_turn, first = [], 0
    for turn in turns:
        batches = equal_lengths([len(sequence) for sequence in turn], most_tokens)
        by_turn.append([[first + member for member in batch] for batch in batches])
        first += len(turn)
    return by_turn


class TurnTaking:
    """
    Hands out batches turn by turn, until others wait.

    Args:
        by_turn: Batches of each turn.
        others_wait: Asked before each turn but the first, under a lock.

    Attributes:
        num_begun: Turns of which a batch was handed out.
    """

    def __init__(self, by_turn: Sequence[Sequence[Sequence[int]]], others_wait: Callable[[], bool]) -> None:
        self._lock = threading.Lock()
        self._left = self._batches(by_turn, others_wait)
        self.num_begun = 0

    def work_off(
        self, run: Callable[[Sequence[int]], None], executor: Executor | None = None, at_once: int = 1
    ) -> None:
        """
        Run all batches, on threads of an executor or on this one, and return once none runs any more.

        Raises:
            Exception: What `run` raises, the first; batches that were not begun by then are left.
        """
        if executor is None:
            self._drain(run)
            return
        running = [executor.submit(self._drain, run) for _ in range(at_once)]
        wait(running)
        for one in running:
            one.result()

    def _batches(
        self, by_turn: Sequence[Sequence[Sequence[int]]], others_wait: Callable[[], bool]
    ) -> Iterator[Sequence[int]]:
        for number, turn in enumerate(by_turn):
            if number and others_wait():
                return
            self.num_begun = number + 1
            yield from turn

    def _drain(self, run: Callable[[Sequence[int]], None]) -> None:
        while True:
            with self._lock:
                batch = next(self._left, None)
            if batch is None:
                return
            try:
                run(batch)
            except BaseException:
                with self._lock:
                    self._left = iter(())
                raise
