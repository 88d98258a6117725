"""What an OperationManager keeps of the work that runs in its process."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

__all__ = ["End", "Run", "wait_for"]


class End(Enum):
    """Why a running handler was cancelled."""

    CANCELLED = "cancelled by request"
    LOST = "another manager has it"
    STOPPING = "this manager stops"


@dataclass
class Run:
    """One handler at work."""

    kind: str
    shared: bool
    task: "asyncio.Task[None]"
    alive_s: float  # monotonic time of the last beat that was written
    create_s: float  # of the record: under the same name there may be new work since
    end: End | None = None
    unwritten: bytes | None = None
    written_s: float = 0.0

    def stop(self, end: End) -> None:
        """Cancel the handler; the first reason counts."""
        if self.end is None:
            self.end = end
            self.task.cancel()


async def wait_for(event: asyncio.Event, timeout_s: float) -> None:
    """Wait until an event is set, or so long."""
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
