"""Wakes whoever waits for news of a run, without losing a wake-up."""

import asyncio
from collections import defaultdict
from contextlib import suppress

__all__ = ["Signals"]


class Signals:
    """
    One bell a run.

    A waiter takes the bell first, looks at the state then, and waits for that bell last: news that comes between the
    look and the wait rings the bell that was taken.

    >>> async def look() -> bool:
    ...     signals = Signals()
    ...     bell = signals.bell("r")
    ...     signals.ring("r")
    ...     return await signals.wait(bell, 0.01)
    >>> asyncio.run(look())
    True
    """

    def __init__(self) -> None:
        self._bells: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    def bell(self, run: str) -> asyncio.Event:
        """Return the bell that the next news rings."""
        return self._bells[run]

    def ring(self, run: str) -> None:
        """Wake all who wait."""
        self._bells.pop(run, asyncio.Event()).set()

    async def wait(self, bell: asyncio.Event, timeout_s: float) -> bool:
        """Wait for a bell, or not longer than this; say whether it rang."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await bell.wait()
        return bell.is_set()
