"""Calls with typed errors, pages that follow each other, streams that end with their reader."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from time import monotonic
from typing import Any, Protocol, TypeVar

import grpc

from weft_common.client import error_from_rpc
from weft_common.errors import DeadlineExceededError, UnavailableError, WeftError

R = TypeVar("R")
Item = TypeVar("Item")

CALL_S = 60.0
"""Deadline of a short call."""
OUTAGE_S = 120.0
"""How long a service may be away, for example to start again, before a waiting call gives up."""


async def unary(method: Callable[..., Awaitable[R]], request: Any, *, timeout_s: float | None = CALL_S) -> R:
    """One request, one answer; a WeftError of the right class where it fails."""
    try:
        return await method(request, timeout=timeout_s)
    except grpc.RpcError as error:
        raise error_from_rpc(error) from error


async def stream(
    method: Callable[..., Any], request: Any, kind: type[R], *, timeout_s: float | None = None
) -> AsyncIterator[R]:
    """One request, many answers of one kind; leaving the loop early cancels the call."""
    call = method(request, timeout=timeout_s)
    try:
        async for message in call:
            yield message
    except grpc.RpcError as error:
        raise error_from_rpc(error) from error
    finally:
        call.cancel()


class Page(Protocol):
    """What all list responses have."""

    next_page_token: str


async def pages(
    method: Callable[..., Awaitable[Any]],
    request: Any,
    items: Callable[[Any], Sequence[Item]],
    *,
    timeout_s: float | None = CALL_S,
) -> AsyncIterator[Item]:
    """Everything that a list call has, page by page; each page has `timeout_s`."""
    while True:
        page = await unary(method, request, timeout_s=timeout_s)
        for item in items(page):
            yield item
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


class Patience:
    """Bears with a service that is away for a while, as when it is started again."""

    def __init__(self, timeout_s: float | None, *, outage_s: float = OUTAGE_S) -> None:
        self._deadline = None if timeout_s is None else monotonic() + timeout_s
        self._outage_s = outage_s
        self._away_since: float | None = None
        self._pause_s = 0.1

    def heard(self) -> None:
        """The service answered."""
        self._away_since = None
        self._pause_s = 0.1

    async def bear(self, error: WeftError) -> None:
        """
        Wait a little after an error that may pass.

        Raises:
            WeftError: the error itself, where it will not pass or has lasted too long.
        """
        if not isinstance(error, UnavailableError | DeadlineExceededError):
            raise error
        self._away_since = self._away_since or monotonic()
        if monotonic() - self._away_since > self._outage_s:
            raise error
        await self.pause("the service is away")

    async def pause(self, what: str, *, most_s: float = 1.0) -> None:
        """
        Wait a little, longer each time.

        Raises:
            DeadlineExceededError: the time is over.
        """
        if self._deadline is not None and monotonic() + self._pause_s > self._deadline:
            raise DeadlineExceededError(f"the time is over while {what}; the work goes on: wait again, or cancel it")
        await asyncio.sleep(self._pause_s)
        self._pause_s = min(1.5 * self._pause_s, most_s)
