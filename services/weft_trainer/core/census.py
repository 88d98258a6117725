"""Counts runs by state for the operators, and looks after the active ones: all of it from the bucket."""

import asyncio
import time
from collections import Counter
from datetime import datetime

from weft_common.errors import WeftError
from weft_common.logging import get_logger
from weft_trainer.core.gauges import ActiveRun, Gauges
from weft_trainer.core.records import RunRecord, RunState
from weft_trainer.core.runs import RunRepository

__all__ = ["count_runs"]

_log = get_logger(__name__)
# Until a run has told how long its steps take, its checkpoints are expected this often.
_ASSUMED_INTERVAL_S = 1800.0


async def count_runs(runs: RunRepository, gauges: Gauges, interval_s: float = 10.0) -> None:
    """Count again and again, until cancelled."""
    while True:
        try:
            await _count(runs, gauges)
        except WeftError as error:
            _log.warning("runs_not_counted", error=error.message)
        await asyncio.sleep(interval_s)


async def _count(runs: RunRepository, gauges: Gauges) -> None:
    records = await runs.all()
    gauges.jobs(Counter(str(record.state) for record in records))
    waiting = [record for record in records if record.state is RunState.PENDING]
    gauges.pending(max((time.time() - _since_s(record) for record in waiting), default=0.0))
    gauges.active([await _look_at(runs, record) for record in records if record.state is RunState.RUNNING])


async def _look_at(runs: RunRepository, record: RunRecord) -> ActiveRun:
    checkpoint_s = await runs.newest_checkpoint_s(record.run)
    return ActiveRun(
        run=record.run,
        checkpoint_s=max(checkpoint_s, _since_s(record)),
        checkpoint_interval_s=_checkpoint_interval_s(record),
        num_steps=record.num_steps,
        peak_memory_bytes=record.peak_memory_bytes,
    )


def _since_s(record: RunRecord) -> float:
    """Return when the run came into its present state, in seconds since 1970."""
    moment = record.transitions[-1].time if record.transitions else record.create_time
    return datetime.fromisoformat(moment).timestamp()


def _checkpoint_interval_s(record: RunRecord) -> float | None:
    steps = int(record.spec.get("checkpoint_steps", 0))
    if not steps:
        return None
    tokens_per_s = float(record.metrics.get("tokens_per_s") or 0.0)
    return steps * int(record.spec["step_tokens"]) / tokens_per_s if tokens_per_s > 0 else _ASSUMED_INTERVAL_S
