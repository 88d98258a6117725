"""Calls that outlive a restart of the service they go to."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from weft_client.aio.calls import Patience
from weft_common.errors import WeftError

R = TypeVar("R")


async def patiently(call: Callable[[], Awaitable[R]]) -> R:
    """
    Make a call again for as long as its service is away, two minutes at most.

    Args:
        call: Makes the call; it must be safe to make twice.
    """
    patience = Patience(None)
    while True:
        try:
            return await call()
        except WeftError as error:
            await patience.bear(error)
