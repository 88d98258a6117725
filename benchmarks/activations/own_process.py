"""
A service in a process of its own, as it is everywhere but in tests.

    @asynccontextmanager
    async def served(folder: Path) -> AsyncIterator[str]: ...     at the top level of a module: gives its address

    with own_process(served, folder) as target: ...
"""

import asyncio
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path

__all__ = ["own_process"]

Served = Callable[[Path], AbstractAsyncContextManager[str]]


def _serve(served: Served, folder: Path, parent: Connection) -> None:
    """Serve until the parent hangs up."""

    async def serve() -> None:
        async with served(folder) as target:
            parent.send(target)
            with suppress(EOFError):
                await asyncio.to_thread(parent.recv)

    asyncio.run(serve())


@contextmanager
def own_process(served: Served, folder: Path) -> Iterator[str]:
    """
    Serve from another process until the block ends; gives the address.

    Raises:
        EOFError: The process ended before it served; what it said stands above.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(served, folder, there))
    process.start()
    there.close()
    try:
        yield here.recv()
    finally:
        here.close()
        process.join()
