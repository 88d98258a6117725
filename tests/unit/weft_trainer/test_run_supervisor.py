"""Each way a run can go, with ranks that are the test itself."""

import asyncio
from dataclasses import replace

import pytest
from fake_ranks import Controller, FakeLauncher

from weft_common.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)
from weft_trainer.core.ports import RankLog, RankStatus
from weft_trainer.core.records import RunState
from weft_trainer.core.reports import Directive


async def test_run_succeeds_once_its_last_checkpoint_is_there() -> None:
    """Pending, running at the first report, succeeded at exit 0 with a checkpoint at the last step."""
    controller = Controller()
    await controller.create()
    supervising = controller.supervise()
    group = await controller.ranks(1)
    assert group.job is not None
    assert group.job.num_ranks == 2
    assert await controller.report(1, 1, 2) is Directive.CONTINUE
    assert (await controller.runs.get("r")).state is RunState.RUNNING
    await controller.report(1, *range(3, 11))
    controller.save(10)
    group.finish(0)
    record = await supervising
    assert record.state is RunState.SUCCEEDED
    assert [entry.state for entry in record.transitions] == ["PENDING", "RUNNING", "SUCCEEDED"]
    assert (record.step, record.attempt, record.attempt_open) == (10, 1, False)


async def test_run_holds_its_dataset_before_its_ranks_start() -> None:
    """Each attempt holds it anew, as a run that had failed held it no more; a dataset that is gone starts nothing."""
    controller = Controller()
    await controller.create()
    assert controller.catalog.holds == []
    await controller.supervisor._open_attempt("r")
    assert controller.catalog.holds == [("datasets/d", "runs/r")]
    assert (await controller.runs.get("r")).attempt_open
    gone = Controller()
    await gone.create()
    gone.catalog.facts = replace(gone.catalog.facts, name="datasets/other")
    with pytest.raises(NotFoundError):
        await gone.supervisor._open_attempt("r")
    assert (gone.launcher.num_starts, (await gone.runs.get("r")).attempt_open) == (0, False)


async def test_pause_saves_and_resume_goes_on_as_the_next_attempt() -> None:
    """A pause answers reports with SAVE_AND_STOP; a resume starts attempt 2 under the same operation."""
    controller = Controller()
    await controller.create()
    supervising = controller.supervise()
    first = await controller.ranks(1)
    await controller.report(1, 1)
    pausing = asyncio.create_task(controller.commands.pause("r", 5.0))
    async with asyncio.timeout(5):
        while await controller.report(1, 2) is not Directive.SAVE_AND_STOP:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    controller.save(2)
    first.finish(0)
    assert (await pausing).state is RunState.PAUSED
    assert controller.launcher.num_starts == 1
    await controller.commands.resume("r")
    second = await controller.ranks(2)
    assert await controller.report(2, 3) is Directive.CONTINUE
    controller.save(10, attempt=2)
    second.finish(0)
    assert (await supervising).state is RunState.SUCCEEDED
    assert len(controller.operations) == 1


async def test_pause_returns_the_run_as_it_is_when_its_time_is_up() -> None:
    """A pause that the ranks have not done yet stays wanted."""
    controller = Controller()
    await controller.create()
    supervising = controller.supervise()
    group = await controller.ranks(1)
    await controller.report(1, 1)
    record = await controller.commands.pause("r", 0.05)
    assert (record.state, record.pause_wanted) == (RunState.RUNNING, True)
    group.finish(-9)
    assert (await controller.state(RunState.PAUSED)).transitions[-1].reason.startswith("the ranks ended while saving")
    supervising.cancel()


async def test_cancel_stops_the_ranks_with_grace() -> None:
    """A cancelled run is final at once, and its ranks are asked to stop."""
    controller = Controller()
    await controller.create()
    supervising = controller.supervise()
    group = await controller.ranks(1)
    await controller.report(1, 1)
    assert (await controller.commands.cancel("r")).state is RunState.CANCELLED
    record = await supervising
    assert record.state is RunState.CANCELLED
    assert group.stops[0] == 0.5
    assert not group.runs
    with pytest.raises(FailedPreconditionError, match="CANCELLED already"):
        await controller.commands.cancel("r")


async def test_late_report_of_a_cancelled_run_is_told_to_stop() -> None:
    """The present attempt of a run that was cancelled hears STOP."""
    controller = Controller()
    await controller.create()
    supervising = controller.supervise()
    await controller.ranks(1)
    await controller.report(1, 1)
    await controller.commands.cancel("r")
    await supervising
    assert await controller.report(1, 2) is Directive.STOP


async def test_bad_configuration_is_never_retried() -> None:
    """Exit code 42 fails the run with what the rank said."""
    controller = Controller()
    await controller.create()
    supervising = controller.supervise()
    group = await controller.ranks(1)
    await controller.report(1, error_message="the dataset has 5 layers, the run 6")
    group.finish(42, "Traceback")
    record = await supervising
    assert (record.state, record.error_message) == (RunState.FAILED, "the dataset has 5 layers, the run 6")
    assert controller.launcher.num_starts == 1


async def test_three_failures_in_a_row_fail_the_run() -> None:
    """The third attempt that ends badly without a new checkpoint is the last."""
    controller = Controller()
    await controller.create()
    supervising = controller.supervise()
    for attempt in (1, 2, 3):
        (await controller.ranks(attempt)).finish(1, "boom")
    record = await supervising
    assert record.state is RunState.FAILED
    assert "3 attempts in a row" in record.error_message
    assert "boom" in record.error_message
    assert controller.gauges.restarts == ["bad_exit", "bad_exit"]


async def test_a_new_checkpoint_forgives_failures() -> None:
    """Failures only count in a row: a checkpoint in between starts the count anew."""
    controller = Controller()
    await controller.create()
    supervising = controller.supervise()
    for attempt in (1, 2, 3, 4):
        group = await controller.ranks(attempt)
        if attempt in (2, 3):
            controller.save(attempt, attempt)
        group.finish(1, "boom")
    last = await controller.ranks(5)
    controller.save(10, 5)
    last.finish(0)
    assert (await supervising).state is RunState.SUCCEEDED


async def test_a_failed_run_can_be_resumed_under_another_operation() -> None:
    """Its first operation ended with its error, so the work goes on in a second."""
    controller = Controller()
    await controller.create()
    supervising = controller.supervise()
    (await controller.ranks(1)).finish(42, "no")
    await supervising
    record = await controller.commands.resume("r")
    assert (record.state, record.error_message) == (RunState.PENDING, "")
    assert len(set(controller.operations)) == 2
    supervising = controller.supervise()
    group = await controller.ranks(2)
    controller.save(10, 2)
    group.finish(0)
    assert (await supervising).state is RunState.SUCCEEDED


async def _started_before(save: int = 0) -> Controller:
    """Return a controller that wrote an attempt down as open, started it, and is never heard of again."""
    before = Controller()
    await before.create()
    await before.supervisor._open_attempt("r")
    if save:
        before.save(save)
    return before


async def test_a_new_controller_adopts_ranks_that_still_run() -> None:
    """The run of a controller that died is taken up without a second start."""
    before = await _started_before()
    after = Controller(before.store, before.launcher)
    supervising = after.supervise()
    assert await after.report(1, 1) is Directive.CONTINUE
    after.save(10)
    (await after.ranks(1)).finish(0)
    assert (await supervising).state is RunState.SUCCEEDED
    assert after.launcher.num_starts == 1


async def test_a_new_controller_learns_how_ranks_ended_meanwhile() -> None:
    """Ranks that did all steps while no controller was there make the run succeed."""
    before = await _started_before(save=10)
    (await before.ranks(1)).finish(0)
    after = Controller(before.store, before.launcher)
    assert (await after.supervise()).state is RunState.SUCCEEDED
    assert after.launcher.num_starts == 1


async def test_a_new_controller_starts_anew_where_the_machine_went() -> None:
    """Ranks that are gone without a trace are followed by attempt 2 from the newest checkpoint."""
    before = await _started_before(save=4)
    after = Controller(before.store, FakeLauncher())
    supervising = after.supervise()
    group = await after.ranks(2)
    assert after.gauges.restarts == ["disappeared"]
    after.save(10, 2)
    group.finish(0)
    record = await supervising
    assert record.state is RunState.SUCCEEDED
    assert "going on from step 4" in record.transitions[1].reason


async def test_an_attempt_that_was_never_started_is_no_failure() -> None:
    """A controller that died between its intent and the start leaves nothing but a number behind."""
    controller = Controller()
    await controller.create()
    await controller.runs.change("r", lambda record: replace(record, attempt=1, attempt_open=True))
    supervising = controller.supervise()
    group = await controller.ranks(2)
    assert (await controller.runs.get("r")).failures == 0
    controller.save(10, 2)
    group.finish(0)
    assert (await supervising).state is RunState.SUCCEEDED


async def test_shutdown_stops_the_ranks_and_leaves_the_run_to_be_taken_up() -> None:
    """A supervision that is cancelled asks the ranks to stop; the next one goes on as attempt 2."""
    controller = Controller()
    await controller.create()
    supervising = controller.supervise()
    group = await controller.ranks(1)
    await controller.report(1, 1)
    await asyncio.sleep(0.05)
    supervising.cancel()
    with pytest.raises(asyncio.CancelledError):
        await supervising
    assert group.stops[0] == 0.5
    record = await controller.runs.get("r")
    assert (record.state, record.attempt_open, record.failures) == (RunState.PENDING, False, 0)
    again = Controller(controller.store, controller.launcher)
    supervising = again.supervise()
    second = await again.ranks(2)
    again.save(10, 2)
    second.finish(0)
    assert (await supervising).state is RunState.SUCCEEDED


async def test_end_stops_ranks_and_sets_a_final_state_once() -> None:
    """A run whose operation is cancelled ends cancelled, without ranks; a final state stays."""
    before = await _started_before()
    await before.supervisor.end("r", RunState.CANCELLED, "its operation was cancelled")
    assert not (await before.ranks(1)).runs
    await before.supervisor.end("r", RunState.FAILED, "again")
    record = await before.runs.get("r")
    assert (record.state, record.attempt_open) == (RunState.CANCELLED, False)


async def test_disruptions_are_no_failures() -> None:
    """However often the machines are taken away, the run goes on, and each time is counted as that."""
    controller = Controller()
    await controller.create()
    supervising = controller.supervise()
    for attempt in range(1, 6):
        (await controller.ranks(attempt)).finish(-15, "node drained", disrupted=True)
    last = await controller.ranks(6)
    record = await controller.runs.get("r")
    assert record.failures == 0
    assert "ranks were taken away; going on from step 0: node drained" in record.transitions[-1].reason
    controller.save(10, 6)
    last.finish(0)
    assert (await supervising).state is RunState.SUCCEEDED
    assert controller.gauges.restarts == ["disrupted"] * 5


async def test_run_says_what_its_ranks_wait_for_until_they_do_not() -> None:
    """The reason is in the run's record while it lasts, and gone at the first report."""
    controller = Controller()
    await controller.create()
    supervising = controller.supervise()
    group = await controller.ranks(1)
    group.status = RankStatus(pending_reason="Unschedulable: no node fits")
    await controller.pending("Unschedulable: no node fits")
    group.status = RankStatus(pending_reason="ErrImagePull: no such image")
    await controller.pending("ErrImagePull: no such image")
    group.status = RankStatus()
    await controller.report(1, 1)
    assert (await controller.state(RunState.RUNNING)).pending_reason == ""
    controller.save(10)
    group.finish(0)
    assert (await supervising).pending_reason == ""


async def test_restarts_without_the_controller_are_counted() -> None:
    """Those since this controller looked first; those before were another's to count."""
    before = await _started_before()
    group = await before.ranks(1)
    group.status = RankStatus("waits", restarts=3)
    after = Controller(before.store, before.launcher)
    supervising = after.supervise()
    await after.pending("waits")
    assert after.gauges.restarts == []
    group.status = RankStatus("waits again", restarts=5)
    await after.pending("waits again")
    assert after.gauges.restarts == ["disrupted", "disrupted"]
    supervising.cancel()


async def test_ranks_that_outlive_their_controller_are_left_alone() -> None:
    """A controller that stops, or is no longer the leader, ends nothing; the next one adopts the same attempt."""
    controller = Controller()
    controller.launcher.ranks_outlive_controller = True
    await controller.create()
    supervising = controller.supervise()
    group = await controller.ranks(1)
    await controller.report(1, 1)
    await asyncio.sleep(0.05)
    supervising.cancel()
    with pytest.raises(asyncio.CancelledError):
        await supervising
    assert (group.stops, group.runs) == ([], True)
    again = Controller(controller.store, controller.launcher)
    supervising = again.supervise()
    assert await again.report(1, 2) is Directive.CONTINUE
    again.save(10)
    group.finish(0)
    assert (await supervising).attempt == 1
    assert again.launcher.num_starts == 1


async def test_start_that_the_launcher_cannot_do_now_is_no_failure() -> None:
    """The run says why it waits, and the next try is another attempt."""
    controller = Controller()
    await controller.create()
    controller.launcher.refuses = ResourceExhaustedError("exceeded quota: gpus")
    with pytest.raises(ResourceExhaustedError):
        await controller.supervise()
    record = await controller.runs.get("r")
    assert (record.state, record.attempt_open, record.failures) == (RunState.PENDING, False, 0)
    assert record.pending_reason == "exceeded quota: gpus"
    controller.launcher.refuses = None
    supervising = controller.supervise()
    group = await controller.ranks(2)
    controller.save(10, 2)
    group.finish(0)
    record = await supervising
    assert (record.state, record.pending_reason) == (RunState.SUCCEEDED, "")


async def test_logs_are_kept_once_ranks_have_ended() -> None:
    """Those of the open attempt are the ranks' own; those of older ones come from the bucket, cut to size."""
    controller = Controller()
    await controller.create()
    assert await controller.logs.get("r", 0, 0) == (0, [])
    supervising = controller.supervise()
    first = await controller.ranks(1)
    assert await controller.logs.get("r", 0, 6) == (1, [RankLog("rank 0", " wrote")])
    first.written = "the last words of attempt 1"
    first.finish(1, "boom")
    second = await controller.ranks(2)
    assert await controller.logs.get("r", 1, 9) == (1, [RankLog("rank 0", "attempt 1")])
    assert (await controller.logs.get("r", 0, 0))[0] == 2
    controller.save(10, 2)
    second.finish(0)
    await supervising
    assert await controller.logs.get("r", 0, 0) == (2, [RankLog("rank 0", "what rank 0 wrote")])
    with pytest.raises(NotFoundError, match="its last is 2"):
        await controller.logs.get("r", 3, 0)
    with pytest.raises(InvalidArgumentError, match="max_bytes is 2000000"):
        await controller.logs.get("r", 0, 2_000_000)


async def test_attempt_that_kept_no_log_says_so() -> None:
    """A controller that died with its machine had no time to copy them."""
    before = await _started_before(save=4)
    after = Controller(before.store, FakeLauncher())
    supervising = after.supervise()
    await after.ranks(2)
    after.store.delete("runs/r/attempts/1/logs.json")
    with pytest.raises(NotFoundError, match="nothing was kept of the logs of attempt 1"):
        await after.logs.get("r", 1, 0)
    supervising.cancel()
