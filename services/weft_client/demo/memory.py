"""The largest memory that all processes of the run took together."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import psutil

from weft_client.local.control import memory_bytes, process_bytes
from weft_client.local.layout import Layout


class PeakMemory:
    """
    Samples the resident memory of the services, their ranks and this process; pages that they share count once.

    Args:
        layout: The folder of the run.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.peak_bytes = 0

    def sample(self) -> None:
        """Take the sum now."""
        total = memory_bytes(self._layout) + process_bytes(psutil.Process())
        self.peak_bytes = max(self.peak_bytes, total)

    @asynccontextmanager
    async def sampled(self, every_s: float = 1.0) -> AsyncIterator[None]:
        """Sample for as long as this lasts."""

        async def sample_forever() -> None:
            while True:
                await asyncio.to_thread(self.sample)
                await asyncio.sleep(every_s)

        task = asyncio.create_task(sample_forever())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
