"""Questions that take a processor for seconds: a few at a time, a few more wait, others are refused."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from weft_common.errors import ResourceExhaustedError

__all__ = ["Turns"]

_RETRY_AFTER_S = 2.0
T = TypeVar("T")


class Turns:
    """
    Used from one event loop.

    Args:
        at_once: Questions that are worked on at a time.
        waiting: Questions that may wait for that.
        asked: What they are, for whoever is refused.
    """

    def __init__(
        self, *, at_once: int = 2, waiting: int = 16, asked: str = "questions that go over whole transcoders"
    ) -> None:
        self._asked = asked
        self._gate, self._most = asyncio.Semaphore(at_once), at_once + waiting
        self._there = 0
        self._tasks: set[asyncio.Future[Any]] = set()

    async def take(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """
        Wait for a turn, and work. Whoever is cancelled gives the turn back once the work has ended, not before.

        Raises:
            ResourceExhaustedError: As many as may wait are waiting.
        """
        if self._there >= self._most:
            raise ResourceExhaustedError(
                f"{self._there} {self._asked} are under way or wait, as many as are taken at once; ask "
                f"again after {_RETRY_AFTER_S:g} s, or run more replicas",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._there += 1
        try:
            await self._gate.acquire()
        except BaseException:
            self._there -= 1
            raise
        # Its thread goes on whatever becomes of the caller, and takes a processor until it ends.
        task = asyncio.ensure_future(work())
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: "asyncio.Future[Any]") -> None:
        self._tasks.discard(task)
        self._gate.release()
        self._there -= 1
