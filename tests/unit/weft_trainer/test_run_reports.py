"""What ranks may say, what becomes of it, and what a watcher sees."""

import asyncio
from typing import Any

import pytest
from fake_ranks import Controller

from weft_common.errors import FailedPreconditionError, NotFoundError
from weft_trainer.core.records import RunRecord, RunState
from weft_trainer.core.watch import Evaluated, Stepped


async def _running() -> Controller:
    controller = Controller()
    await controller.create()
    await controller.supervisor._open_attempt("r")
    return controller


async def _watch(controller: Controller, after: int = 0) -> list[Any]:
    """Follow a run to its end: steps as numbers, evaluations as ('e', step), states by name."""
    seen: list[Any] = []
    async for news in controller.watcher.watch("r", after):
        if isinstance(news, RunRecord):
            seen.append(news.state.value)
        elif isinstance(news, Evaluated):
            seen.append(("e", news["step"]))
        else:
            assert isinstance(news, Stepped)
            seen.append(news["step"])
    return seen


async def _end(controller: Controller) -> None:
    await controller.supervisor.end("r", RunState.SUCCEEDED, "done")


async def test_older_attempt_is_refused() -> None:
    """A rank of an attempt that was followed by another is told so, and changes nothing."""
    controller = await _running()
    await controller.runs.change("r", lambda record: type(record).from_document({**record.to_document(), "attempt": 2}))
    with pytest.raises(FailedPreconditionError, match="attempt 2 is the present one"):
        await controller.report(1, 5)
    assert await controller.journal.recent("r") == []


async def test_report_of_an_unknown_run_is_refused() -> None:
    """There is nothing to report to where there is no run."""
    with pytest.raises(NotFoundError):
        await Controller().report(1, 1)


async def test_peak_memory_adds_the_largest_of_every_rank() -> None:
    """Run.peak_memory_bytes is the sum over ranks of each one's largest report."""
    controller = await _running()
    await controller.report(1, rank=1, peak_memory_bytes=70)
    await controller.report(1, 1, peak_memory_bytes=100)
    await controller.report(1, rank=1, peak_memory_bytes=60)
    await controller.report(1, 2, peak_memory_bytes=90, evaluation={"step": 2})
    assert (await controller.runs.get("r")).peak_memory_bytes == 170


async def test_metrics_of_other_ranks_are_not_taken() -> None:
    """Only rank 0 speaks for the run."""
    controller = await _running()
    await controller.report(1, 1, rank=1)
    assert await controller.journal.recent("r") == []


async def test_watch_sends_every_step_once_and_ends_with_the_final_state() -> None:
    """Metrics, then the evaluation after them, then the change of state."""
    controller = await _running()
    watching = asyncio.create_task(_watch(controller))
    await asyncio.sleep(0.02)
    await controller.report(1, 1)
    await controller.report(1, 2, 3, evaluation={"step": 3, "explained_variance": 0.5})
    await controller.report(1, 4)
    await asyncio.sleep(0.05)
    await _end(controller)
    async with asyncio.timeout(5):
        seen = await watching
    # Where the change to RUNNING stands depends on when the watcher looks.
    assert "RUNNING" in seen
    assert [news for news in seen if news != "RUNNING"] == ["PENDING", 1, 2, 3, ("e", 3), 4, "SUCCEEDED"]


async def test_watch_after_a_step_leaves_out_what_came_before() -> None:
    """A watcher that comes back says what it has."""
    controller = await _running()
    await controller.report(1, *range(1, 8))
    await _end(controller)
    assert await _watch(controller, after=5) == [6, 7, "SUCCEEDED"]


async def test_watch_replays_after_a_restart_without_gap_or_double() -> None:
    """What was reported before the controller died comes from the bucket, chunk or not."""
    before = await _running()
    await before.report(1, *range(1, 4))
    before.close_chunk(1, 1, 3)
    await before.report(1, 4, 5)
    after = Controller(before.store, before.launcher)
    watching = asyncio.create_task(_watch(after, after=1))
    await after.report(1, 6)
    await asyncio.sleep(0.05)
    await _end(after)
    assert [news for news in await watching if isinstance(news, int)] == [2, 3, 4, 5, 6]


async def test_watch_reads_chunks_for_what_memory_no_longer_has() -> None:
    """Of a long run only the last steps are in memory; the others come from rank 0's chunks."""
    controller = await _running()
    for first in range(1, 601, 50):
        await controller.report(1, *range(first, first + 50))
        controller.close_chunk(1, first, first + 49)
    assert len(await controller.journal.recent("r")) == 256
    await _end(controller)
    assert (await _watch(controller))[:-1] == list(range(1, 601))


async def test_watch_waits_for_a_chunk_that_fills_a_gap() -> None:
    """Steps beyond a gap are held back until the steps in it are there."""
    controller = await _running()
    await controller.report(1, 3, 4)
    watching = asyncio.create_task(_watch(controller))
    await asyncio.sleep(0.1)
    controller.close_chunk(1, 1, 2)
    controller.signals.ring("r")
    await asyncio.sleep(0.1)
    await _end(controller)
    assert [news for news in await watching if isinstance(news, int)] == [1, 2, 3, 4]


async def test_watch_shows_a_repeated_step_once() -> None:
    """Attempt 2 does the steps after its checkpoint again; a watcher saw them already."""
    controller = await _running()
    await controller.report(1, 1, 2, 3, 4)
    watching = asyncio.create_task(_watch(controller))
    await asyncio.sleep(0.05)
    await controller.runs.change("r", lambda record: type(record).from_document({**record.to_document(), "attempt": 2}))
    await controller.report(2, 3, 4)
    await controller.report(2, 5)
    await asyncio.sleep(0.05)
    await _end(controller)
    assert [news for news in await watching if isinstance(news, int)] == [1, 2, 3, 4, 5]


async def test_damaged_checkpoint_stands_in_the_history_once() -> None:
    """However often a rank tells it: one entry, one count, and the run's state stays what it is."""
    controller = await _running()
    await controller.report(1, 1)
    notice = "attempt 1 goes on from step 2, as checkpoint 4 is damaged: its file is gone"
    for _ in range(2):
        await controller.report(1, rank=1, notice=notice)
    record = await controller.runs.get("r")
    assert [entry.reason for entry in record.transitions].count(notice) == 1
    assert record.transitions[-1].state is record.state is RunState.RUNNING
    assert controller.gauges.num_damaged == 1


async def test_checkpoint_whose_manifest_cannot_be_read_hides_no_other() -> None:
    """The list has those that can be read."""
    controller = await _running()
    controller.store.put("runs/r/checkpoints/00000002/manifest.json", b'{"attempt": 1}')
    controller.store.put("runs/r/checkpoints/00000004/manifest.json", b'{"attempt"')
    assert [found.step for found in await controller.runs.checkpoints("r")] == [2]
