"""Work of other services, for no longer than somebody waits for it."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import Request

from weft_common.errors import CancelledError

__all__ = ["while_asked"]

T = TypeVar("T")


async def while_asked(request: Request, call: Awaitable[T]) -> T:
    """
    Return a call's answer, and cancel the call where the browser goes away first.

    A browser breaks off what was overtaken; the model would work on for nobody, and the next question wait for it.

    Args:
        request: Whose body was read to its end.
        call: To another service.

    Raises:
        CancelledError: Nobody waits for the answer any more.
    """
    answer = asyncio.ensure_future(call)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        raise CancelledError("the browser broke the request off; ask again")
    finally:
        answer.cancel()
        gone.cancel()
        await asyncio.gather(answer, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
