"""Turns of a harvest: every batch once, nobody before his turn, and away where others wait."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from harvest_fakes import FakeBackend

from weft_activations.adapters.turns import TurnTaking
from weft_activations.core.inference import Inference
from weft_activations.core.packing import PackedSequence
from weft_activations.core.plan import Lease
from weft_activations.core.ports import Split

BATCHES = [[[0], [1, 2]], [[3], [4], [5]], [[6]]]
ALL = [batch for turn in BATCHES for batch in turn]


@pytest.mark.parametrize("at_once", [0, 1, 4])
def test_every_batch_is_run_once(at_once: int) -> None:
    """On this thread or on several; and nothing runs any more afterwards."""
    ran: list[Sequence[int]] = []
    taking = TurnTaking(BATCHES, lambda: False)
    with ThreadPoolExecutor(4) as executor:
        taking.work_off(ran.append, *((executor, at_once) if at_once else ()))
        assert sorted(ran) == ALL
    assert taking.num_begun == 3


def test_turns_after_others_wait_are_left() -> None:
    """The first turn is run whatever waits, and a turn that has begun is ended."""
    ran: list[Sequence[int]] = []
    taking = TurnTaking(BATCHES, lambda: True)
    taking.work_off(ran.append)
    assert (ran, taking.num_begun) == (BATCHES[0], 1)
    asked: list[int] = []
    ran = []
    taking = TurnTaking(BATCHES, lambda: bool(asked.append(0)) or len(asked) == 2)
    taking.work_off(ran.append)
    assert (ran, taking.num_begun) == (BATCHES[0] + BATCHES[1], 2)


def test_next_turn_begins_while_the_last_batch_of_one_runs() -> None:
    """Threads wait for each other at the end alone."""
    later = threading.Event()

    def run(batch: Sequence[int]) -> None:
        if batch == [1, 2]:
            assert later.wait(30)
        elif batch[0] >= 3:
            later.set()

    with ThreadPoolExecutor(2) as executor:
        TurnTaking(BATCHES, lambda: False).work_off(run, executor, 2)


def test_failure_ends_the_others_before_it_is_told() -> None:
    """Who is told that a call failed may take its memory back: nothing writes there any more."""
    ran: list[Sequence[int]] = []
    begun, failed = threading.Event(), threading.Event()

    def run(batch: Sequence[int]) -> None:
        if batch == [0]:
            assert begun.wait(30)
            failed.set()
            raise ValueError("no number")
        begun.set()
        assert failed.wait(30)
        time.sleep(0.05)
        ran.append(batch)

    with ThreadPoolExecutor(2) as executor:
        with pytest.raises(ValueError, match="no number"):
            TurnTaking(BATCHES, lambda: False).work_off(run, executor, 2)
        assert ran == [[1, 2]]


def test_lease_is_shared_out_in_order() -> None:
    """A turn has so many tokens at most, or one sequence."""
    lengths = (5, 3, 9, 2, 2, 2)
    sequences = [PackedSequence(np.arange(length), np.zeros(0, np.intp)) for length in lengths]
    turns = Lease(0, Split.TRAIN, sequences).turns(8)
    assert [[len(ids) for ids in turn] for turn in turns] == [[5, 3], [9], [2, 2, 2]]


async def test_harvest_hears_that_others_wait() -> None:
    """From when a call is sent until it runs, or is given up; and of its own cancellation."""
    answers: list[bool] = []
    steps = [threading.Event() for _ in range(4)]

    class Asking(FakeBackend):
        def streams(self, model_id: str, turns: Any, into: Any, others_wait: Callable[[], bool] = lambda: False) -> int:
            for step in steps:
                assert step.wait(30)
                answers.append(others_wait())
            return 1

    async def ask(step: int) -> None:
        steps[step].set()
        async with asyncio.timeout(30):
            while len(answers) <= step:  # noqa: ASYNC110  a thread answers
                await asyncio.sleep(0.001)

    inference = Inference(Asking())
    try:
        harvest = asyncio.create_task(inference.streams("fake", [], {}))
        await ask(0)
        other = asyncio.create_task(inference.describe("fake"))
        await asyncio.sleep(0.05)
        await ask(1)
        other.cancel()
        with pytest.raises(asyncio.CancelledError):
            await other
        await ask(2)
        harvest.cancel()
        await asyncio.sleep(0.05)
        await ask(3)
        with pytest.raises(asyncio.CancelledError):
            await harvest
        assert answers == [False, True, False, True]
        assert (await inference.describe("fake")).model_id == "fake"
    finally:
        inference.close()
