"""A launcher whose ranks are the test itself, and a controller around it in one piece."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from weft_common.errors import NotFoundError, WeftError
from weft_store import ObjectStore, open_store
from weft_trainer.core.commands import RunCommands
from weft_trainer.core.epochs import RunEpochs
from weft_trainer.core.gauges import ActiveRun
from weft_trainer.core.job_running import JobRunner
from weft_trainer.core.jobs import CheckpointJobs
from weft_trainer.core.journal import Journal
from weft_trainer.core.logs import RunLogs
from weft_trainer.core.ports import DatasetFacts, RankExit, RankJob, RankLog, RankStatus
from weft_trainer.core.records import Measurement, RunRecord, RunState
from weft_trainer.core.reports import Directive, RankReport, ReportDesk
from weft_trainer.core.runs import RunRepository, checkpoint_prefix
from weft_trainer.core.signals import Signals
from weft_trainer.core.supervisor import RunSupervisor, SupervisorOptions
from weft_trainer.core.watch import Watcher

SPEC: dict[str, Any] = {
    "dataset": "datasets/d",
    "num_features": 8,
    "activation": "ACTIVATION_TOP_K",
    "top_k": 2,
    "num_steps": 10,
    "step_tokens": 4,
    "feature_ranks": 2,
    "data_ranks": 1,
    "learning_rate": 1e-3,
    "adam_beta2": 0.99,
    "dead_after_tokens": 1000,
    "seed": 1,
}


@dataclass
class FakeGroup:
    """A job that ends when the test says so."""

    job: RankJob | None
    ended: "asyncio.Future[RankExit]"
    stops: list[float] = field(default_factory=list)
    status: RankStatus = field(default_factory=RankStatus)
    written: str = "what rank 0 wrote"

    @property
    def runs(self) -> bool:
        return not self.ended.done()

    def finish(self, code: int | None, detail: str = "", *, disrupted: bool = False) -> None:
        self.ended.set_result(RankExit(code, detail, disrupted))

    async def wait(self) -> RankExit:
        return await asyncio.shield(self.ended)

    async def stop(self, grace_s: float) -> None:
        self.stops.append(grace_s)
        if self.runs:
            self.finish(-15, "asked to stop")

    async def look(self) -> RankStatus:
        return self.status

    async def logs(self, max_bytes: int) -> Sequence[RankLog]:
        return [RankLog("rank 0", self.written[-max_bytes:])]


class FakeLauncher:
    """Keeps what was started, by key; a controller that is made anew over it finds its jobs again."""

    def __init__(self) -> None:
        self.groups: dict[str, FakeGroup] = {}
        self.num_starts = 0
        self.ranks_outlive_controller = False
        self.refuses: WeftError | None = None

    async def check(self, job: RankJob) -> None:
        if self.refuses is not None:
            raise self.refuses

    async def start(self, job: RankJob, register: Callable[[Mapping[str, Any]], Awaitable[None]]) -> FakeGroup:
        await register({"host": "here", "pid": 1, "start_time": 0.0})
        await self.check(job)
        assert job.key not in self.groups or not self.groups[job.key].runs, "a job runs twice"
        self.num_starts += 1
        group = self.groups[job.key] = FakeGroup(job, asyncio.get_running_loop().create_future())
        return group

    async def find(self, key: str, record: Mapping[str, Any]) -> FakeGroup:
        if key not in self.groups:
            gone = self.groups[key] = FakeGroup(None, asyncio.get_running_loop().create_future())
            gone.finish(None)
        return self.groups[key]

    async def clear(self, key: str) -> None:
        if key in self.groups:
            await self.groups[key].stop(0)


class FakeCatalog:
    """One dataset that fits SPEC, changed by the test."""

    def __init__(self) -> None:
        self.facts = DatasetFacts("datasets/d", True, 3, 6, 1000, 100)
        self.snapshots: list[DatasetFacts] = []
        self.holds: list[tuple[str, str]] = []

    async def describe(self, name: str, snapshot: int = 0) -> DatasetFacts:
        if name != self.facts.name or snapshot > len(self.snapshots):
            raise NotFoundError(f"there is no {name}, or no snapshot {snapshot} of it")
        return replace(self.snapshots[snapshot - 1], sealed=self.facts.sealed) if snapshot else self.facts

    async def snapshot(self, name: str) -> DatasetFacts:
        facts = await self.describe(name)
        if facts.sealed:
            return facts
        taken = replace(facts, snapshot=len(self.snapshots) + 1)
        if not self.snapshots or replace(self.snapshots[-1], snapshot=0) != facts:
            self.snapshots.append(taken)
        return self.snapshots[-1]

    async def hold(self, name: str, holder: str) -> None:
        await self.describe(name)
        self.holds.append((name, holder))

    def commit(self, num_train_tokens: int, num_held_out_tokens: int = 0) -> None:
        """Open the dataset, with so many tokens more."""
        train, held_out = self.facts.num_train_tokens, self.facts.num_held_out_tokens
        self.facts = replace(
            self.facts,
            sealed=False,
            num_train_tokens=train + num_train_tokens,
            num_held_out_tokens=held_out + num_held_out_tokens,
        )


class FakeGauges:
    """Keeps figures."""

    def __init__(self) -> None:
        self.restarts: list[str] = []
        self.num_damaged = 0
        self.oldest_pending_s = 0.0
        self.active_runs: dict[str, ActiveRun] = {}

    def jobs(self, counts: dict[str, int]) -> None: ...

    def restarted(self, reason: str) -> None:
        self.restarts.append(reason)

    def pending(self, oldest_s: float) -> None:
        self.oldest_pending_s = oldest_s

    def active(self, runs: Sequence[ActiveRun]) -> None:
        self.active_runs = {run.run: run for run in runs}

    def damaged(self) -> None:
        self.num_damaged += 1

    def checkpointed(self, run: str, moment_s: float) -> None: ...

    def trained(self, run: str, metrics: Measurement, step_tokens: int) -> None: ...


class Controller:
    """Everything between the RPCs and the processes."""

    def __init__(self, store: ObjectStore | None = None, launcher: FakeLauncher | None = None) -> None:
        self.store = store or open_store("memory://")
        self.launcher = launcher or FakeLauncher()
        self.catalog = FakeCatalog()
        self.gauges = FakeGauges()
        self.signals = Signals()
        self.runs = RunRepository(self.store)
        self.journal = Journal(self.store)
        self.desk = ReportDesk(self.store, self.runs, self.journal, self.signals, self.gauges)
        self.epochs = RunEpochs(self.runs, self.catalog)
        self.watcher = Watcher(self.store, self.runs, self.journal, self.signals)
        options = SupervisorOptions(
            restart_backoff_s=0.01, stop_grace_s=0.5, look_interval_s=0.02, status_interval_s=0.01
        )
        self.supervisor = RunSupervisor(
            self.store,
            self.runs,
            self.launcher,
            self.desk,
            self.signals,
            self.gauges,
            self.epochs,
            lambda run, attempt, ranks: {"WEFT_WORKER_ATTEMPT": str(attempt)},
            options,
        )
        self.runner = JobRunner(self.launcher, self.store)
        self.jobs = CheckpointJobs(self.store, self.runs, self.runner, lambda run, attempt, ranks: {})
        self.logs = RunLogs(self.store, self.runs, self.launcher)
        self.operations: list[str] = []
        self.commands = RunCommands(self.runs, self.catalog, self.signals, self._start, 8, self.supervisor.check)

    async def _start(self, operation_id: str, run: str) -> str:
        self.operations.append(operation_id)
        return f"operations/trainer-{operation_id}"

    async def create(self, **changes: Any) -> RunRecord:
        return await self.commands.create("r", {**SPEC, **changes}, "", validate_only=False)

    def supervise(self) -> "asyncio.Task[RunRecord]":
        async def ignore(record: RunRecord) -> None: ...

        return asyncio.create_task(self.supervisor.supervise("r", ignore))

    async def ranks(self, attempt: int) -> FakeGroup:
        """Wait for the ranks of an attempt."""
        key = f"runs/r/attempts/{attempt}"
        async with asyncio.timeout(5):
            while key not in self.launcher.groups:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        return self.launcher.groups[key]

    async def state(self, state: RunState) -> RunRecord:
        """Wait for a state."""
        async with asyncio.timeout(5):
            while (record := await self.runs.get("r")).state is not state:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        return record

    async def pending(self, reason: str) -> None:
        """Wait until the run says that it waits for this."""
        async with asyncio.timeout(5):
            while (await self.runs.get("r")).pending_reason != reason:  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    async def report(self, attempt: int, *steps: int, rank: int = 0, **more: Any) -> Directive:
        """Speak as a rank."""
        metrics = [measured(step, attempt) for step in steps]
        return await self.desk.take(RankReport("r", attempt, rank, metrics=metrics, **more))

    def save(self, step: int, attempt: int = 1) -> None:
        """Save a checkpoint as a rank would."""
        prefix = checkpoint_prefix("r", step)
        self.store.put(f"{prefix}rank0-of-1.safetensors", b"1234")
        self.store.put(f"{prefix}manifest.json", json.dumps({"attempt": attempt, "step": step}).encode())

    def close_chunk(self, attempt: int, first: int, last: int) -> None:
        """Write a chunk of metrics as rank 0 would."""
        lines = "".join(json.dumps(measured(step, attempt)) + "\n" for step in range(first, last + 1))
        self.store.put(f"runs/r/attempts/{attempt}/metrics-{first:08d}.jsonl", lines.encode())


def measured(step: int, attempt: int = 1) -> Measurement:
    """Return a step's metrics."""
    return {"step": step, "tokens": 4 * step, "loss": 1.0 / step, "tokens_per_s": 10.0 + attempt}
