"""Calls to other services end with the request that they are for."""

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest
from starlette.requests import Request

from weft_common.errors import CancelledError, NotFoundError
from weft_console.api.while_asked import while_asked


class Browser:
    """The other end of a request whose body was read."""

    def __init__(self) -> None:
        self.is_gone = asyncio.Event()
        self.is_listened_to = False

    async def receive(self) -> MutableMapping[str, Any]:
        self.is_listened_to = True
        try:
            await self.is_gone.wait()
            return {"type": "http.disconnect"}
        finally:
            self.is_listened_to = False


@pytest.fixture
async def browser() -> Browser:
    return Browser()


def request(browser: Browser) -> Request:
    return Request({"type": "http", "method": "POST", "headers": []}, browser.receive)


async def test_answer_comes_through_and_nobody_listens_on(browser: Browser) -> None:
    """The call's answer is returned, its error is raised, and what watched for the browser has ended."""

    async def answers() -> str:
        await asyncio.sleep(0)
        return "an answer"

    async def fails() -> str:
        raise NotFoundError("there is none")

    assert await while_asked(request(browser), answers()) == "an answer"
    assert not browser.is_listened_to
    with pytest.raises(NotFoundError, match="there is none"):
        await while_asked(request(browser), fails())
    assert not browser.is_listened_to


async def test_call_is_cancelled_when_the_browser_goes(browser: Browser) -> None:
    """A call that would go on is cancelled, and has ended by the time that the request has."""
    ended: list[str] = []

    async def works_on() -> str:
        browser.is_gone.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")
        return "too late"

    with pytest.raises(CancelledError, match="broke the request off"):
        await while_asked(request(browser), works_on())
    assert ended == ["cancelled"]


async def test_request_that_is_cancelled_cancels_its_call(browser: Browser) -> None:
    """A console that is told to stop leaves no call behind."""
    began, ended = asyncio.Event(), asyncio.Event()

    async def works_on() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    task = asyncio.ensure_future(while_asked(request(browser), works_on()))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
    assert not browser.is_listened_to
