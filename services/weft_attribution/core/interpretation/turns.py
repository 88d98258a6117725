"""Many pieces of work, a few at a time."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

__all__ = ["in_turns"]

Item = TypeVar("Item")


async def in_turns(items: Iterable[Item], work: Callable[[Item], Awaitable[None]], at_once: int) -> None:
    """
    Do work for each item, begun in order, so many at once; the first error ends it all and is raised.

    Args:
        items: What to work on.
        work: Done for each.
        at_once: How many are worked on at a time.
    """
    left = iter(items)

    async def one_after_the_other() -> None:
        for item in left:
            await work(item)

    tasks = [asyncio.ensure_future(one_after_the_other()) for _ in range(at_once)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
