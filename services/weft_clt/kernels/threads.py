"""
How the CPU kernels share work: every thread takes its own run of columns, and keeps its own buffers from step to step.

The compiled loops let go of Python's lock, so plain threads run side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["WIDEST_BYTES", "Buffers", "Workers", "column_runs"]

WIDEST_BYTES = 128
"""Of a strip of columns (`panel_loops`); measured: wider leaves too few registers."""
_LINE_BYTES = 64


def column_runs(num_columns: int, item_bytes: int, num_threads: int) -> list[tuple[int, int]]:
    """
    Split columns into runs of whole strips, as even as that allows; fewer than asked where there are fewer strips.

    >>> column_runs(100, 4, 2)
    [(0, 64), (64, 100)]
    >>> column_runs(20, 4, 2)
    [(0, 20)]
    """
    width = WIDEST_BYTES // item_bytes
    strips = -(-num_columns // width)
    count = max(1, min(num_threads, strips))
    cuts = [min(num_columns, -(-strips * run // count) * width) for run in range(count + 1)]
    return list(pairwise(cuts))


class Workers:
    """
    Threads that wait for work; the caller is one of them.

    Args:
        num_threads: At least 1, the caller included.
    """

    def __init__(self, num_threads: int) -> None:
        self.num_threads = num_threads
        self._pool = ThreadPoolExecutor(num_threads - 1, "weft-kernels") if num_threads > 1 else None

    def each(self, work: Callable[[int], Any], count: int) -> list[Any]:
        """Call `work` with 0 ... count - 1 side by side and return its results; count is at most `num_threads`."""
        if self._pool is None or count == 1:
            return [work(index) for index in range(count)]
        others = [self._pool.submit(work, index) for index in range(1, count)]
        return [work(0), *(other.result() for other in others)]


class Buffers:
    """Arrays that are used again in every step: fresh memory costs more than what is computed in it."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, int, Any], NDArray[Any]] = {}

    def get(self, name: str, thread: int, count: int, dtype: Any) -> NDArray[Any]:
        """Return `count` elements, begun at a cache line; what is in them is left over from before."""
        key = (name, thread, np.dtype(dtype))
        held = self._held.get(key)
        if held is None or held.shape[0] < count:
            item_bytes = np.dtype(dtype).itemsize
            raw = np.empty(count * item_bytes + _LINE_BYTES, dtype=np.uint8)
            skip = -raw.ctypes.data % _LINE_BYTES
            held = raw[skip : skip + count * item_bytes].view(dtype)
            self._held[key] = held
        return held[:count]
