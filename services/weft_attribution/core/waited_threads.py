"""Threads that a cancelled caller still waits for, so that nothing writes once the caller is gone."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["ended", "in_thread"]

T = TypeVar("T")


async def in_thread(call: Callable[..., T], *arguments: object) -> T:
    """Call in a thread; cancelled, it ends as such once the thread has, whatever that gave."""
    work = asyncio.ensure_future(asyncio.to_thread(call, *arguments))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await ended(work)
        raise


async def ended(work: "asyncio.Future[Any]") -> None:
    """Wait until work has ended, however often the caller is cancelled meanwhile; its error is left to who asks."""
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError as error:
            cancelled = error
    if not work.cancelled():
        work.exception()
    if cancelled is not None:
        raise cancelled
