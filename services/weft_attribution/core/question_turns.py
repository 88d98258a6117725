"""Questions that take a processor for seconds: a few at a time, a few more wait, others are refused."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from weft_common.errors import ResourceExhaustedError

__all__ = ["Turns"]

_RETRY_AFTER_S = 2.0


class Turns:
    """
    Used from one event loop.

    Args:
        at_once: Questions that are worked on at a time.
        waiting: Questions that may wait for that.
    """

    def __init__(self, *, at_once: int = 2, waiting: int = 16) -> None:
        self._gate, self._most = asyncio.Semaphore(at_once), at_once + waiting
        self._there = 0

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """
        Wait for a turn and keep it for as long as the context lasts.

        Raises:
            ResourceExhaustedError: As many as may wait are waiting.
        """
        if self._there >= self._most:
            raise ResourceExhaustedError(
                f"{self._there} questions that go over whole transcoders are under way or wait, as many as are taken "
                f"at once; ask again after {_RETRY_AFTER_S:g} s, or run more replicas",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._there += 1
        try:
            async with self._gate:
                yield
        finally:
            self._there -= 1
