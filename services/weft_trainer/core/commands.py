"""What people and programs do with runs."""

import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from weft_common.errors import AlreadyExistsError, FailedPreconditionError, NotFoundError
from weft_trainer.core.admission import check_new_id, check_run
from weft_trainer.core.ports import DatasetCatalog
from weft_trainer.core.records import RunRecord, RunState, Transition, now
from weft_trainer.core.runs import RunRepository
from weft_trainer.core.signals import Signals

__all__ = ["RunCommands", "operation_id"]

# Starts the operation of this id that trains this run, or finds it; returns its name.
StartOperation = Callable[[str, str], Awaitable[str]]

_LOOK_INTERVAL_S = 0.5


def operation_id(run: str, count: int) -> str:
    """
    Return the id of a run's n-th operation, of bounded length.

    >>> operation_id("demo", 1)
    'train-demo-2a97516c-1'
    """
    digest = hashlib.sha256(run.encode()).hexdigest()[:8]
    return f"train-{run[:32].rstrip('-')}-{digest}-{count}"


class RunCommands:
    """
    Creates, pauses, resumes and cancels runs.

    Args:
        runs: The runs of the bucket.
        catalog: Describes datasets.
        signals: Rung at every change.
        start_operation: Starts the work.
        max_ranks: Ranks that can be started.
        check_ranks: Finds out whether the ranks of a run could be started; raises where not.
    """

    def __init__(
        self,
        runs: RunRepository,
        catalog: DatasetCatalog,
        signals: Signals,
        start_operation: StartOperation,
        max_ranks: int,
        check_ranks: Callable[[RunRecord], Awaitable[None]],
    ) -> None:
        self._runs = runs
        self._catalog = catalog
        self._signals = signals
        self._start_operation = start_operation
        self._max_ranks = max_ranks
        self._check_ranks = check_ranks

    async def create(self, run: str, spec: Mapping[str, Any], request_id: str, *, validate_only: bool) -> RunRecord:
        """
        Check a run and start it.

        Raises:
            AlreadyExistsError: There is another run of this id.
            InvalidArgumentError, NotFoundError, FailedPreconditionError: See `check_run`, or the ranks cannot be
                started.
        """
        check_new_id(run, "run_id")
        record = RunRecord(
            run=run,
            # As JSON gives it back, so that a request that comes again compares equal.
            spec=json.loads(json.dumps(dict(spec))),
            create_time=now(),
            request_id=request_id,
            transitions=(Transition(RunState.PENDING, now(), "created"),),
        )
        try:
            return await self._started(_same_request(await self._runs.get(run), record))
        except NotFoundError:
            await check_run(spec, self._catalog, self._max_ranks, is_new=True)
            await self._check_ranks(record)
        if validate_only:
            return record
        try:
            await self._runs.create(record)
        except AlreadyExistsError:
            record = _same_request(await self._runs.get(run), record)
        return await self._started(record)

    async def _started(self, record: RunRecord) -> RunRecord:
        """Give a run the operation that does its work, where it has none yet."""
        if record.operation:
            return record
        name = await self._start_operation(operation_id(record.run, record.operation_count), record.run)
        return await self._runs.change(record.run, lambda present: replace(present, operation=name))

    async def start_unstarted(self) -> None:
        """Start what a controller wrote down and then died before it started."""
        for record in await self._runs.all():
            if not record.state.is_final:
                await self._started(record)

    async def pause(self, run: str, wait_s: float) -> RunRecord:
        """Ask for a pause and wait for it, so long. FailedPreconditionError: not running."""

        def change(record: RunRecord) -> RunRecord:
            if record.state is not RunState.RUNNING:
                raise FailedPreconditionError(
                    f"{record.name} is {record.state}, and only a RUNNING run can be paused: "
                    "look at it with GetRun, stop it for good with CancelRun."
                )
            return replace(record, pause_wanted=True)

        await self._runs.change(run, change)
        self._signals.ring(run)
        deadline = time.monotonic() + wait_s
        while True:
            bell = self._signals.bell(run)
            record = await self._runs.get(run)
            if not record.pause_wanted or time.monotonic() >= deadline:
                return record
            await self._signals.wait(bell, min(_LOOK_INTERVAL_S, max(0.0, deadline - time.monotonic())))

    async def resume(self, run: str, ranks: Mapping[str, int] | None = None) -> RunRecord:
        """
        Go on from the newest checkpoint.

        Args:
            ranks: `feature_ranks` and `data_ranks` from now on; 0, or one that is missing, stays as it was.

        Raises:
            FailedPreconditionError: Neither paused nor failed.
            InvalidArgumentError: See `check_run`, or so many ranks cannot be started.
        """
        other = {field: count for field, count in (ranks or {}).items() if count}
        if other:
            present = await self._runs.get(run)
            present = replace(present, spec={**present.spec, **other})
            await check_run(present.spec, self._catalog, self._max_ranks)
            await self._check_ranks(present)

        def change(record: RunRecord) -> RunRecord:
            if record.state not in (RunState.PAUSED, RunState.FAILED):
                raise FailedPreconditionError(
                    f"{record.name} is {record.state}, and only a PAUSED or FAILED run can be resumed: "
                    "look at it with GetRun."
                )
            record = replace(record, spec={**record.spec, **other})
            changes: dict[str, Any] = {"failures": 0, "error_message": ""}
            if record.state is RunState.FAILED:
                # The operation of a failed run has ended with its error.
                changes |= {"operation": "", "operation_count": record.operation_count + 1}
            return record.moved(RunState.PENDING, "resumed", **changes)

        record = await self._started(await self._runs.change(run, change))
        self._signals.ring(run)
        return record

    async def cancel(self, run: str, reason: str = "cancelled") -> RunRecord:
        """Stop a run for good; its ranks are ended by whoever supervises it. FailedPreconditionError: it has ended."""

        def change(record: RunRecord) -> RunRecord:
            if record.state.is_final:
                raise FailedPreconditionError(f"{record.name} is {record.state} already: there is nothing to cancel.")
            return record.moved(RunState.CANCELLED, reason, pause_wanted=False)

        record = await self._runs.change(run, change)
        self._signals.ring(run)
        return record


def _same_request(there: RunRecord, asked: RunRecord) -> RunRecord:
    """Return the run that is there where the same request made it. AlreadyExistsError."""
    if asked.request_id and there.request_id == asked.request_id and dict(there.spec) == dict(asked.spec):
        return there
    raise AlreadyExistsError(
        f"there is a {asked.name} already, {there.state}, of another request: look at it with GetRun, or choose "
        "another run_id. A request that is sent again must have the same request_id and spec.",
        field="run_id",
    )
