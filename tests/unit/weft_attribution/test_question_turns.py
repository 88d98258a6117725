"""Questions that take seconds: some at a time, some wait, others are refused with when to come again."""

import asyncio
import threading
from functools import partial
from typing import Any

import pytest

from weft.features.v1 import steering_pb2
from weft_attribution.core.question_turns import Turns
from weft_attribution.servicer_steered_text import SteeredTextRpcs
from weft_common.errors import ResourceExhaustedError


async def test_turns_are_taken_waited_for_and_refused() -> None:
    """Two work, three wait, the next is refused; an end, whatever it is, lets the next one in."""
    turns, working, most, may_end = Turns(at_once=2, waiting=3), 0, 0, asyncio.Event()

    async def ask(fails: bool) -> None:
        nonlocal working, most
        working += 1
        most = max(most, working)
        await may_end.wait()
        working -= 1
        if fails:
            raise ValueError

    asked = [asyncio.ensure_future(turns.take(partial(ask, number == 1))) for number in range(5)]
    for _ in range(3):
        await asyncio.sleep(0)
    with pytest.raises(ResourceExhaustedError, match="ask again after") as refused:
        await turns.take(partial(ask, True))
    assert refused.value.retry_after_s
    assert working == 2
    asked[4].cancel()
    await asyncio.gather(asked[4], return_exceptions=True)
    may_end.set()
    done = await asyncio.gather(*asked[:4], return_exceptions=True)
    assert [type(each) for each in done] == [type(None), ValueError, type(None), type(None)]
    assert (working, most) == (0, 2)
    await turns.take(partial(ask, False))


async def test_cancelled_question_keeps_its_turn_until_its_thread_ends() -> None:
    """Nobody else works beside a thread that goes on; once that has ended, the next begins."""
    turns, begun, held, order = Turns(at_once=1, waiting=1), threading.Event(), threading.Event(), []

    def slow() -> None:
        begun.set()
        assert held.wait(30)
        order.append("first")

    async def second() -> None:
        order.append("second")

    first = asyncio.ensure_future(turns.take(lambda: asyncio.to_thread(slow)))
    assert await asyncio.to_thread(begun.wait, 30)
    first.cancel()
    await asyncio.wait({first})
    assert first.cancelled()
    following = asyncio.ensure_future(turns.take(second))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not order
    with pytest.raises(ResourceExhaustedError):
        await turns.take(second)
    held.set()
    await following
    assert order == ["first", "second"]


async def test_steered_texts_are_taken_a_few_at_a_time() -> None:
    """What is beyond those that work and wait is refused before the model is asked, with when to come again."""
    at_once, most, may_end = 0, 0, asyncio.Event()

    class Steered:
        async def steer(self, plan: object) -> None:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            await may_end.wait()
            at_once -= 1
            raise ValueError

    servicer: Any = SteeredTextRpcs()
    servicer.steered, servicer.steering_turns = Steered(), Turns(at_once=2, waiting=1, asked="steered texts")
    request = steering_pb2.SteerOnPromptRequest(transcoder="transcoders/t", prompt="x")
    asked = [asyncio.ensure_future(servicer.SteerOnPrompt(request, None)) for _ in range(3)]
    for _ in range(5):
        await asyncio.sleep(0)
    with pytest.raises(ResourceExhaustedError, match=r"3 steered texts .*ask again after 2 s"):
        await servicer.SteerOnPrompt(request, None)
    may_end.set()
    assert [type(each) for each in await asyncio.gather(*asked, return_exceptions=True)] == 3 * [ValueError]
    assert most == 2
