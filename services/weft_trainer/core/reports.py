"""What ranks tell and what they are told: the desk at which every report of a rank ends."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from weft_common.errors import FailedPreconditionError
from weft_common.logging import get_logger
from weft_store import ObjectStore
from weft_store.documents import encode_json
from weft_trainer.core.gauges import Gauges
from weft_trainer.core.journal import Journal
from weft_trainer.core.records import Measurement, RunRecord, RunState
from weft_trainer.core.runs import RunRepository
from weft_trainer.core.signals import Signals

__all__ = ["Directive", "RankReport", "ReportDesk", "check_attempt", "evaluation_key"]

_log = get_logger(__name__)

# Seconds between two writes of a run's document that only bring newer metrics.
_PERSIST_INTERVAL_S = 2.0


class Directive(Enum):
    """What a rank shall do."""

    CONTINUE = auto()
    SAVE_AND_STOP = auto()
    STOP = auto()


def evaluation_key(run: str, step: int) -> str:
    """Return where an evaluation made during a run lies."""
    return f"runs/{run}/evaluations/{step:08d}.json"


@dataclass(frozen=True)
class RankReport:
    """
    What a rank has to tell.

    Args:
        run: Id of the run.
        attempt: That speaks.
        rank: That speaks.
        metrics: Steps since the last report; from rank 0 only.
        evaluation: A new one, or empty.
        checkpoint_step: Of a checkpoint that is complete; 0 if none.
        finished: All steps are done and saved.
        error_message: Why the rank gives up, or empty.
        peak_memory_bytes: Of this rank, resident, largest so far.
        notice: A damaged checkpoint, in words for the run's history; or empty.
    """

    run: str
    attempt: int
    rank: int
    metrics: Sequence[Measurement] = ()
    evaluation: Measurement = field(default_factory=dict)
    checkpoint_step: int = 0
    finished: bool = False
    error_message: str = ""
    peak_memory_bytes: int = 0
    notice: str = ""


@dataclass
class _Heard:
    attempt: int
    peaks: dict[int, int] = field(default_factory=dict)
    persisted_s: float = 0.0
    notices: set[str] = field(default_factory=set)


class ReportDesk:
    """
    Takes the reports of all ranks.

    Args:
        store: The bucket.
        runs: The runs in it.
        journal: Keeps metrics.
        signals: Rung at every news.
        gauges: Figures for the operators.
    """

    def __init__(
        self, store: ObjectStore, runs: RunRepository, journal: Journal, signals: Signals, gauges: Gauges
    ) -> None:
        self._store = store
        self._runs = runs
        self._journal = journal
        self._signals = signals
        self._gauges = gauges
        self._heard: dict[str, _Heard] = {}

    async def take(self, report: RankReport) -> Directive:
        """
        Take a report and say what the rank shall do.

        Raises:
            NotFoundError: No such run.
            FailedPreconditionError: The attempt that speaks is not the present one.
        """
        record = await self._runs.get(report.run)
        check_attempt(record, report.attempt)
        heard = self._heard.get(report.run)
        if heard is None or heard.attempt != report.attempt:
            heard = self._heard[report.run] = _Heard(report.attempt)
        heard.peaks[report.rank] = max(report.peak_memory_bytes, heard.peaks.get(report.rank, 0))
        if report.rank == 0:
            await self._journal.add(report.run, report.attempt, report.metrics)
            for metrics in report.metrics:
                self._gauges.trained(report.run, metrics, int(record.spec["step_tokens"]))
        if report.evaluation:
            await asyncio.to_thread(
                self._store.put,
                evaluation_key(report.run, int(report.evaluation["step"])),
                encode_json(report.evaluation),
            )
        if report.checkpoint_step:
            self._gauges.checkpointed(report.run, time.time())
        if self._is_worth_writing(record, report, heard):
            heard.persisted_s = time.monotonic()
            record = await self._runs.change(
                report.run, lambda present: _apply(present, report, sum(heard.peaks.values()))
            )
        if report.notice and report.notice not in heard.notices:
            # A rank that did not hear the answer tells it again.
            heard.notices.add(report.notice)
            self._gauges.damaged()
            _log.warning("checkpoint_damaged", run=report.run, details=report.notice)
        self._signals.ring(report.run)
        return _directive(record)

    async def flush(self, run: str) -> None:
        """Write the newest metrics of a run into its document."""
        recent = await self._journal.recent(run)
        if recent:
            await self._runs.change(run, lambda present: _with_metrics(present, recent[-1]))

    def forget(self, run: str) -> None:
        """Free the memory of a run that ended."""
        self._heard.pop(run, None)
        self._journal.forget(run)

    def _is_worth_writing(self, record: RunRecord, report: RankReport, heard: _Heard) -> bool:
        news = report.evaluation or report.error_message or report.finished or report.notice
        if record.state is RunState.PENDING or news:
            return True
        return report.rank == 0 and time.monotonic() - heard.persisted_s >= _PERSIST_INTERVAL_S


def check_attempt(record: RunRecord, attempt: int) -> None:
    """Raise FailedPreconditionError where an attempt that speaks is not a run's present one."""
    if attempt != record.attempt:
        raise FailedPreconditionError(
            f"attempt {attempt} of {record.name} speaks, but attempt {record.attempt} is the present one: stop.",
            metadata={"attempt": str(record.attempt)},
        )


def _directive(record: RunRecord) -> Directive:
    if record.state not in (RunState.PENDING, RunState.RUNNING) or not record.attempt_open:
        return Directive.STOP
    return Directive.SAVE_AND_STOP if record.pause_wanted else Directive.CONTINUE


def _with_metrics(record: RunRecord, metrics: Measurement) -> RunRecord:
    return replace(record, step=int(metrics["step"]), metrics=metrics)


def _apply(record: RunRecord, report: RankReport, peak_memory_bytes: int) -> RunRecord:
    check_attempt(record, report.attempt)
    if record.state is RunState.PENDING and record.attempt_open and not report.error_message:
        record = record.moved(RunState.RUNNING, f"the ranks of attempt {report.attempt} report")
    if report.metrics and report.rank == 0:
        record = _with_metrics(record, report.metrics[-1])
    if report.notice:
        record = record.noted(report.notice)
    return replace(
        record,
        evaluation=report.evaluation or record.evaluation,
        rank_error=record.rank_error or report.error_message,
        peak_memory_bytes=max(record.peak_memory_bytes, peak_memory_bytes),
    )
