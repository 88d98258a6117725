"""Calls on threads that hear of their end, and the bytes that they share."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from weft_activations.core.calls import ByteBudget, current_call, run_call
from weft_common.errors import CancelledError


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


async def test_call_returns_what_its_work_returns(threads: ThreadPoolExecutor) -> None:
    """Results and errors of a thread come back to who awaits them."""
    assert await run_call(threads, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await run_call(threads, lambda: 1 / 0)


async def test_call_hears_that_it_is_cancelled_and_ends_first(threads: ThreadPoolExecutor) -> None:
    """A running call's listener is called, and the cancellation goes on only after the thread is through."""
    started, heard, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        with current_call().heard_by(heard.set):
            started.set()
            assert heard.wait(60)
        with pytest.raises(CancelledError):
            current_call().check()
        ended.set()

    task = asyncio.create_task(run_call(threads, work))
    await asyncio.to_thread(started.wait, 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_call_that_waits_never_runs_once_cancelled(threads: ThreadPoolExecutor) -> None:
    """Work behind other work is dropped where nobody waits for it."""
    gate, ran = threading.Event(), []
    first = asyncio.create_task(run_call(threads, lambda: gate.wait(60)))
    second = asyncio.create_task(run_call(threads, lambda: ran.append(2)))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    gate.set()
    assert await first
    assert ran == []


def test_work_without_a_call_is_never_cancelled() -> None:
    """A plain thread has a call of its own, which nobody cancels."""
    assert not current_call().is_cancelled
    current_call().check()


def test_listener_of_a_call_cancelled_before_is_called_at_once() -> None:
    """Who comes late hears it all the same, and once."""
    call, heard = current_call(), []
    call.cancel()
    with call.heard_by(lambda: heard.append(1)):
        call.cancel()
    assert heard == [1]


async def test_bytes_are_given_in_order_and_never_beyond_the_limit() -> None:
    """A large call waits for room, and a small one behind it does not overtake; one too large runs alone."""
    budget = ByteBudget(100)
    order: list[int] = []
    most = 0

    async def take(num_bytes: int) -> None:
        nonlocal most
        async with budget.taking(num_bytes):
            order.append(num_bytes)
            most = max(most, budget.taken_bytes if num_bytes <= 100 else 0)
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    await asyncio.gather(*(take(size) for size in (60, 50, 10, 200, 30, 71, 29)))
    assert order == [60, 50, 10, 200, 30, 71, 29]
    assert most == 100
    assert budget.taken_bytes == 0


async def test_bytes_come_back_from_calls_that_are_cancelled() -> None:
    """Neither who waits nor who was just given its turn keeps bytes after a cancellation."""
    budget = ByteBudget(10)
    entered: list[str] = []

    async def take(name: str) -> None:
        async with budget.taking(10):
            entered.append(name)
            await asyncio.sleep(3600)

    first, second, third = (asyncio.create_task(take(name)) for name in ("first", "second", "third"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert entered == ["first"]
    second.cancel()
    await asyncio.sleep(0)
    first.cancel()
    for _ in range(4):
        await asyncio.sleep(0)
    assert entered == ["first", "third"]
    third.cancel()
    await asyncio.gather(first, second, third, return_exceptions=True)
    assert budget.taken_bytes == 0


async def test_turn_of_a_caller_that_was_just_cancelled_goes_to_the_next() -> None:
    """Bytes that come back before the cancelled caller has woken up are given to who waits behind it."""
    budget = ByteBudget(10)
    entered: list[str] = []

    async def take(name: str) -> None:
        async with budget.taking(10):
            entered.append(name)

    async with budget.taking(10):
        second, third = (asyncio.create_task(take(name)) for name in ("second", "third"))
        await asyncio.sleep(0)
        second.cancel()
    await asyncio.gather(second, third, return_exceptions=True)
    assert entered == ["third"]
    assert budget.taken_bytes == 0
