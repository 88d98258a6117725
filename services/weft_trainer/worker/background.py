"""What a rank does beside its steps: writes to the bucket, one after the other, in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from weft_clt.mesh import Mesh
from weft_trainer.worker.patience import patiently

__all__ = ["Background", "done", "together"]

T = TypeVar("T")

_MEET_S = 1.0


def done(result: T) -> Future[T]:
    """Give a piece of work that there is nothing to do for."""
    future: Future[T] = Future()
    future.set_result(result)
    return future


def together(mesh: Mesh, future: Future[T]) -> T:
    """
    Wait until a piece of work is done on every rank; return this rank's result, or raise what it failed with.

    Ranks meet every second meanwhile: however long one takes, it does not look to the others as if it hung.

    Collectives: a reduction over the mesh each time.
    """
    while mesh.any(not wait([future], _MEET_S).done):
        pass
    return future.result()


class Background:
    """
    Does work in the order in which it was given; what the bucket refuses for now is tried again.

    The thread does not keep the process alive: whoever needs the work done waits for it.

    Args:
        retry_s: How long a piece of work is tried.
    """

    def __init__(self, retry_s: float) -> None:
        self._retry_s = retry_s
        self._waiting: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        threading.Thread(target=self._run, name="writes", daemon=True).start()

    def submit(self, what: str, work: Callable[[], T]) -> Future[T]:
        """Do work after all that was submitted before; `what` is for the log."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(patiently(work, what, self._retry_s))
            except BaseException as error:
                self._failure = self._failure or error
                future.set_exception(error)

        self._waiting.put(run)
        return future

    def check(self) -> None:
        """Raise what any work has failed with."""
        if self._failure is not None:
            raise self._failure

    def drain(self, mesh: Mesh) -> None:
        """
        Wait for all that was submitted, on every rank; raise what any of this rank's failed with.

        Collectives: those of `together`.
        """
        together(mesh, self.submit("the end of all writes", lambda: None))
        self.check()

    def _run(self) -> None:
        while True:
            self._waiting.get()()
