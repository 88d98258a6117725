"""Questions that take seconds: some at a time, some wait, others are refused with when to come again."""

import asyncio

import pytest

from weft_attribution.core.question_turns import Turns
from weft_common.errors import ResourceExhaustedError


async def test_turns_are_taken_waited_for_and_refused() -> None:
    """Two work, three wait, the next is refused; an end, whatever it is, lets the next one in."""
    turns, working, most, may_end = Turns(at_once=2, waiting=3), 0, 0, asyncio.Event()

    async def ask(fails: bool) -> None:
        nonlocal working, most
        async with turns.taken():
            working += 1
            most = max(most, working)
            await may_end.wait()
            working -= 1
            if fails:
                raise ValueError

    asked = [asyncio.ensure_future(ask(number == 1)) for number in range(5)]
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhaustedError, match="ask again after") as refused:
        async with turns.taken():
            raise AssertionError("unreachable")
    assert refused.value.retry_after_s
    assert working == 2
    asked[4].cancel()
    await asyncio.gather(asked[4], return_exceptions=True)
    may_end.set()
    done = await asyncio.gather(*asked[:4], return_exceptions=True)
    assert [type(each) for each in done] == [type(None), ValueError, type(None), type(None)]
    assert (working, most) == (0, 2)
    async with turns.taken():
        pass
