"""
Calls that run on threads, and hear it when nobody waits for them any more; and the memory that their results may take.

A thread cannot be stopped from outside. What runs for long asks `current_call` for the call that it belongs to, and
leaves when that is cancelled: by its caller, by its deadline, or because the service stops.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import TypeVar

from weft_common.errors import CancelledError

__all__ = ["ByteBudget", "Call", "current_call", "run_call"]

T = TypeVar("T")


class Call:
    """One call; its methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: list[Callable[[], None]] = []
        self._is_cancelled = False

    @property
    def is_cancelled(self) -> bool:
        """Whether nobody waits for it."""
        return self._is_cancelled

    def cancel(self) -> None:
        """Tell everybody who listens, once."""
        with self._lock:
            listeners = [] if self._is_cancelled else list(self._listeners)
            self._is_cancelled = True
        for listener in listeners:
            listener()

    def check(self) -> None:
        """Raise CancelledError where nobody waits."""
        if self._is_cancelled:
            raise CancelledError("the call was cancelled before it was through")

    @contextmanager
    def heard_by(self, listener: Callable[[], None]) -> Iterator[None]:
        """Call `listener` when the call is cancelled while the context lasts, or at once where it was before."""
        with self._lock:
            was_cancelled = self._is_cancelled
            self._listeners.append(listener)
        try:
            if was_cancelled:
                listener()
            yield
        finally:
            with self._lock:
                self._listeners.remove(listener)


_CURRENT: ContextVar[Call | None] = ContextVar("current_call", default=None)


def current_call() -> Call:
    """Return the call that this thread works for; one that is never cancelled where there is none."""
    return _CURRENT.get() or Call()


async def run_call(executor: Executor, work: Callable[[], T]) -> T:
    """
    Run blocking work on a thread, as a call that is cancelled together with whoever awaits this.

    The cancellation goes on once the thread is through, so that what the caller holds for it is not given back before.
    """
    call = Call()

    def run() -> T:
        token = _CURRENT.set(call)
        try:
            call.check()
            return work()
        finally:
            _CURRENT.reset(token)

    running = executor.submit(run)
    try:
        return await asyncio.wrap_future(running)
    except asyncio.CancelledError:
        call.cancel()
        if not running.cancelled():
            loop, ended = asyncio.get_running_loop(), asyncio.Event()
            running.add_done_callback(lambda _: loop.call_soon_threadsafe(ended.set))
            await ended.wait()
        raise


class ByteBudget:
    """
    Bytes shared by calls, in the order in which they ask; used on one event loop.

    Args:
        max_bytes: Most that are taken at once. One call may take more than that, by itself.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self.taken_bytes = 0

    @asynccontextmanager
    async def taking(self, num_bytes: int) -> AsyncIterator[None]:
        """Wait for bytes, and hold them while the context lasts."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (num_bytes, turn)
        self._waiting.append(entry)
        self._grant()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.taken_bytes -= num_bytes
            elif entry in self._waiting:
                self._waiting.remove(entry)
            self._grant()
            raise
        try:
            yield
        finally:
            self.taken_bytes -= num_bytes
            self._grant()

    def _grant(self) -> None:
        while self._waiting:
            num_bytes, turn = self._waiting[0]
            if turn.cancelled():  # its caller has not woken up yet
                self._waiting.popleft()
                continue
            if self.taken_bytes and self.taken_bytes + num_bytes > self._max_bytes:
                return
            self._waiting.popleft()
            self.taken_bytes += num_bytes
            turn.set_result(None)
