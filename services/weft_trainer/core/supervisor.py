"""
Keeps one run's ranks going until the run is in a final state.

An attempt is one start of all ranks. It is written down as open before anything starts, so that whoever takes the
run up after this controller died knows where to look: either its ranks are found and adopted, or they never began, or
how they ended is found, and in each case nothing runs twice.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from weft_common.errors import NotFoundError, WeftError
from weft_common.logging import get_logger
from weft_store import ObjectStore
from weft_store.documents import create_json, read_json, update_json
from weft_trainer.core.epochs import RunEpochs
from weft_trainer.core.gauges import Gauges
from weft_trainer.core.logs import keep_logs
from weft_trainer.core.ports import BAD_CONFIGURATION, RankExit, RankGroup, RankJob, RankLauncher, RankStatus
from weft_trainer.core.records import RunRecord, RunState, now
from weft_trainer.core.reports import ReportDesk
from weft_trainer.core.runs import RunRepository, attempt_key
from weft_trainer.core.signals import Signals

__all__ = ["RunSupervisor", "SupervisorOptions"]

_log = get_logger(__name__)


@dataclass(frozen=True)
class SupervisorOptions:
    """
    How patient a supervisor is.

    Args:
        max_failures: Attempts in a row that may end badly without a new checkpoint.
        restart_backoff_s: Wait before the first retry; doubled for each further one in a row.
        stop_grace_s: What ranks are given to stop before they are ended.
        look_interval_s: How often a run's document is looked at where nothing rings.
        status_interval_s: How often ranks are looked at from outside.
        worker_module: What a rank runs.
    """

    max_failures: int = 3
    restart_backoff_s: float = 1.0
    stop_grace_s: float = 8.0
    look_interval_s: float = 1.0
    status_interval_s: float = 5.0
    worker_module: str = "weft_trainer.worker"


class RunSupervisor:
    """
    Supervises runs.

    Args:
        store: The bucket.
        runs: The runs in it.
        launcher: Starts ranks.
        desk: Takes their reports.
        signals: Rung at every news.
        gauges: Figures for the operators.
        epochs: Settles what the first one goes over.
        environment: Makes the settings of ranks, from run, attempt and number of ranks.
        options: Patience.
    """

    def __init__(
        self,
        store: ObjectStore,
        runs: RunRepository,
        launcher: RankLauncher,
        desk: ReportDesk,
        signals: Signals,
        gauges: Gauges,
        epochs: RunEpochs,
        environment: Callable[[str, int, int], Mapping[str, str]],
        options: SupervisorOptions,
    ) -> None:
        self._store = store
        self._runs = runs
        self._launcher = launcher
        self._desk = desk
        self._signals = signals
        self._gauges = gauges
        self._epochs = epochs
        self._environment = environment
        self._options = options

    async def supervise(self, run: str, on_news: Callable[[RunRecord], Awaitable[None]]) -> RunRecord:
        """
        Keep a run going until it is in a final state, and return it.

        Cancelled, it leaves ranks that outlive their controller be. It asks others to stop and waits for their end; the
        run goes on from its newest checkpoint when it is taken up again.
        """
        while True:
            bell = self._signals.bell(run)
            record = await self._runs.get(run)
            if record.attempt_open:
                await self._see_through(record, on_news)
            elif record.state.is_final:
                self._desk.forget(run)
                self._epochs.forget(run)
                return record
            elif record.state is RunState.PAUSED:
                await on_news(record)
                await self._signals.wait(bell, self._options.look_interval_s)
            else:
                await self._back_off(record)
                await self._open_attempt(run)

    async def check(self, record: RunRecord) -> None:
        """Find out, as far as it is cheap, whether a new run's ranks could be started; raise what the launcher does."""
        await self._launcher.check(self._job(replace(record, attempt=record.attempt + 1)))

    async def end(self, run: str, state: RunState, reason: str, error_message: str = "") -> None:
        """Stop whatever runs of a run and put it in a final state, where it is in none."""
        record = await self._runs.get(run)
        await self._launcher.clear(attempt_key(run, record.attempt))

        def change(present: RunRecord) -> RunRecord:
            present = replace(present, attempt_open=False, pause_wanted=False)
            return present if present.state.is_final else present.moved(state, reason, error_message=error_message)

        await self._runs.change(run, change)
        self._desk.forget(run)
        self._epochs.forget(run)
        self._signals.ring(run)

    async def _back_off(self, record: RunRecord) -> None:
        """Wait after failures, but not longer than until somebody changes the run."""
        if record.failures:
            bell = self._signals.bell(record.run)
            await self._signals.wait(bell, self._options.restart_backoff_s * 2 ** (record.failures - 1))

    def _job(self, record: RunRecord) -> RankJob:
        return RankJob(
            key=attempt_key(record.run, record.attempt),
            module=self._options.worker_module,
            num_ranks=record.num_ranks,
            environment=self._environment(record.run, record.attempt, record.num_ranks),
        )

    async def _open_attempt(self, run: str) -> None:
        try:
            await self._epochs.prepare(run)
        except WeftError as error:
            said = error.message
            await self._runs.change(run, lambda present: _waiting_to_start(present, said))
            raise

        def change(record: RunRecord) -> RunRecord:
            if record.state is not RunState.PENDING or record.attempt_open:
                return record
            return replace(record, attempt=record.attempt + 1, attempt_open=True, rank_error="")

        record = await self._runs.change(run, change)
        if not record.attempt_open:
            return
        job = self._job(record)

        async def register(facts: Mapping[str, Any]) -> None:
            document = {**facts, "attempt": record.attempt, "start_time_utc": now(), "num_ranks": record.num_ranks}
            await asyncio.to_thread(create_json, self._store, f"{job.key}/attempt.json", document)

        try:
            await self._launcher.clear(job.key)
            if record.attempt > 1:
                await self._launcher.clear(attempt_key(run, record.attempt - 1))
            await self._launcher.start(job, register)
        except WeftError as error:
            said = error.message
            await self._runs.change(run, lambda present: _closed(present, record.attempt, said))
            raise
        _log.info("ranks_started", run=run, attempt=record.attempt, num_ranks=record.num_ranks)

    async def _see_through(self, record: RunRecord, on_news: Callable[[RunRecord], Awaitable[None]]) -> None:
        """Follow the open attempt to its end and write down what came of it."""
        key = attempt_key(record.run, record.attempt)
        try:
            facts, _ = await asyncio.to_thread(read_json, self._store, f"{key}/attempt.json")
        except NotFoundError:
            await self._launcher.clear(key)
            await self._runs.change(record.run, lambda present: _closed(present, record.attempt))
            return
        group = await self._launcher.find(key, facts)
        try:
            ended = await self._follow(record, group, on_news)
        except asyncio.CancelledError:
            if self._launcher.ranks_outlive_controller:
                raise
            await group.stop(self._options.stop_grace_s)
            ended = await group.wait()
            await self._conclude(record, ended, with_controller=True)
            raise
        await keep_logs(self._store, record.run, record.attempt, group)
        await group.stop(0)
        await asyncio.to_thread(
            update_json,
            self._store,
            f"{key}/attempt.json",
            lambda document: {**document, "exit_code": ended.code, "end_time_utc": now()},
        )
        await self._conclude(record, ended)

    async def _follow(
        self, record: RunRecord, group: RankGroup, on_news: Callable[[RunRecord], Awaitable[None]]
    ) -> RankExit:
        waiting = asyncio.create_task(group.wait())
        status, looked_s = None, -self._options.status_interval_s
        try:
            while True:
                bell = self._signals.bell(record.run)
                record = await self._runs.get(record.run)
                await on_news(record)
                if record.state is RunState.CANCELLED:
                    await keep_logs(self._store, record.run, record.attempt, group)
                    await group.stop(self._options.stop_grace_s)
                    return await waiting
                if time.monotonic() - looked_s >= self._options.status_interval_s:
                    status, looked_s = await self._look(record, group, status), time.monotonic()
                ringing = asyncio.create_task(self._signals.wait(bell, self._options.look_interval_s))
                await asyncio.wait({waiting, ringing}, return_when=asyncio.FIRST_COMPLETED)
                ringing.cancel()
                if waiting.done():
                    return waiting.result()
        finally:
            waiting.cancel()

    async def _look(self, record: RunRecord, group: RankGroup, before: RankStatus | None) -> RankStatus | None:
        """Note what keeps ranks from running, and count restarts that the controller had no part in."""
        try:
            status = await group.look()
        except WeftError as error:
            _log.warning("ranks_not_looked_at", run=record.run, error=error.message)
            return before
        # A controller that adopts ranks does not know when they were restarted before.
        for _ in range(status.restarts - before.restarts if before else 0):
            self._gauges.restarted("disrupted")
        if status.pending_reason != record.pending_reason:
            _log.info("ranks_wait", run=record.run, attempt=record.attempt, reason=status.pending_reason)
            await self._runs.change(record.run, lambda present: _waiting(present, record.attempt, status))
        return status

    async def _conclude(self, record: RunRecord, ended: RankExit, *, with_controller: bool = False) -> None:
        await self._desk.flush(record.run)
        newest = await self._runs.newest_step(record.run)
        before = await self._runs.get(record.run)
        after = await self._runs.change(
            record.run,
            lambda present: _concluded(
                present, record.attempt, ended, newest, self._options.max_failures, with_controller=with_controller
            ),
        )
        if after.state is RunState.PENDING:
            self._gauges.restarted("stopped" if with_controller else _restart_reason(ended))
        _log.info(
            "ranks_ended",
            run=record.run,
            attempt=record.attempt,
            exit_code=ended.code,
            checkpoint=newest,
            old_state=before.state,
            state=after.state,
            error=after.error_message,
        )
        self._signals.ring(record.run)


def _closed(record: RunRecord, attempt: int, pending_reason: str = "") -> RunRecord:
    if record.attempt != attempt:
        return record
    return replace(record, attempt_open=False, pending_reason=pending_reason)


def _waiting_to_start(record: RunRecord, pending_reason: str) -> RunRecord:
    if record.state is not RunState.PENDING or record.attempt_open:
        return record
    return replace(record, pending_reason=pending_reason)


def _waiting(record: RunRecord, attempt: int, status: RankStatus) -> RunRecord:
    if record.attempt != attempt or not record.attempt_open:
        return record
    return replace(record, pending_reason=status.pending_reason)


def _restart_reason(ended: RankExit) -> str:
    if ended.disrupted:
        return "disrupted"
    return "disappeared" if ended.code is None else "stopped" if ended.code == 0 else "bad_exit"


def _concluded(
    record: RunRecord, attempt: int, ended: RankExit, newest: int, max_failures: int, *, with_controller: bool
) -> RunRecord:
    """Return what a run is once the ranks of an attempt have ended, by themselves or with their controller."""
    if record.attempt != attempt or not record.attempt_open:
        return record
    record = replace(record, attempt_open=False, pending_reason="")
    if record.state is RunState.CANCELLED:
        return record
    if ended.code == 0 and newest >= record.num_steps:
        return record.moved(
            RunState.SUCCEEDED, f"all {record.num_steps} steps are done", step=record.num_steps, pause_wanted=False
        )
    said = record.rank_error or ended.detail or "nothing was said"
    if ended.code == BAD_CONFIGURATION:
        return record.moved(
            RunState.FAILED, "the ranks refuse the configuration", error_message=said, pause_wanted=False
        )
    if record.pause_wanted:
        how = "saved and stopped" if ended.code == 0 else f"the ranks ended while saving ({_how(ended)})"
        return record.moved(RunState.PAUSED, f"{how}; ResumeRun goes on from step {newest}", pause_wanted=False)
    if ended.code == 0 or with_controller:
        return record.moved(RunState.PENDING, f"the ranks were stopped; going on from step {newest}")
    if ended.disrupted:
        return record.moved(RunState.PENDING, f"ranks were taken away; going on from step {newest}: {said}"[:1000])
    failures = 1 if newest > record.failure_step else record.failures + 1
    record = replace(record, failures=failures, failure_step=newest)
    if failures >= max_failures:
        message = (
            f"{failures} attempts in a row ended without a new checkpoint, the last with {_how(ended)}: {said}. "
            f"ResumeRun tries again from step {newest}."
        )
        return record.moved(RunState.FAILED, "too many failures in a row", error_message=message)
    return record.moved(RunState.PENDING, f"{_how(ended)}; going on from step {newest}: {said}"[:1000])


def _how(ended: RankExit) -> str:
    if ended.code is None:
        return "ranks that disappeared"
    if ended.code < 0:
        return f"a rank killed by signal {-ended.code}"
    return f"exit code {ended.code} of a rank"
