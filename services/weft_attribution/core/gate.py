"""Who makes a graph and who helps with one take turns in a process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Gate"]


class Gate:
    """Lets one through at a time, who makes a graph or who helps with one: memory is bounded by one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.is_wanted = False

    @contextmanager
    def making(self) -> Iterator[None]:
        """Wait until a helper is done with its part, and keep helpers out."""
        self.is_wanted = True
        with self._lock:
            try:
                yield
            finally:
                self.is_wanted = False

    @contextmanager
    def helping(self) -> Iterator[bool]:
        """Tell whether there is room for a helper, without waiting."""
        there = not self.is_wanted and self._lock.acquire(blocking=False)
        try:
            yield there
        finally:
            if there:
                self._lock.release()
