"""Follows a run: its metrics without gaps or doubles, its evaluations, its changes of state."""

import asyncio
from collections.abc import AsyncIterator

from weft_common.errors import NotFoundError
from weft_store import ObjectStore
from weft_store.documents import list_ids, read_json
from weft_trainer.core.journal import ChunkReader, Journal
from weft_trainer.core.records import Measurement, RunRecord, RunState
from weft_trainer.core.reports import evaluation_key
from weft_trainer.core.runs import RunRepository
from weft_trainer.core.signals import Signals

__all__ = ["Evaluated", "Stepped", "Watcher"]

# Without a bell (another replica, or ranks whose controller is away) the bucket is looked at this often.
_LOOK_INTERVAL_S = 1.0


class Stepped(dict[str, object]):
    """Metrics of a step."""


class Evaluated(dict[str, object]):
    """An evaluation."""


class Watcher:
    """
    Makes streams of news.

    Args:
        store: The bucket.
        runs: The runs in it.
        journal: Their metrics.
        signals: Rung at every news.
    """

    def __init__(self, store: ObjectStore, runs: RunRepository, journal: Journal, signals: Signals) -> None:
        self._store = store
        self._runs = runs
        self._journal = journal
        self._signals = signals

    async def watch(self, run: str, after_step: int) -> AsyncIterator[Stepped | Evaluated | RunRecord]:
        """
        Yield what there is and then what comes, until the run is in a final state.

        A step's metrics come before an evaluation after that step, and both before the state that followed them.
        NotFoundError.
        """
        chunks = ChunkReader(self._store, run)
        last = after_step
        evaluated: set[int] = set()
        num_transitions = -1
        while True:
            bell = self._signals.bell(run)
            record = await self._runs.get(run)
            steps = await self._steps(run, chunks, last, complete=_is_at_rest(record))
            evaluations = await asyncio.to_thread(self._evaluations, run, after_step, evaluated)
            for metrics in steps:
                last = metrics["step"]
                for step in [step for step in evaluations if step < last]:
                    yield Evaluated(evaluations.pop(step))
                yield Stepped(metrics)
            for step in [step for step in evaluations if step <= last or _is_at_rest(record)]:
                yield Evaluated(evaluations.pop(step))
            evaluated.difference_update(evaluations)
            if len(record.transitions) != num_transitions:
                num_transitions = len(record.transitions)
                yield record
                if record.state.is_final:
                    return
            await self._signals.wait(bell, _LOOK_INTERVAL_S)

    async def _steps(self, run: str, chunks: ChunkReader, last: int, *, complete: bool) -> list[Measurement]:
        """Return what follows `last`, without a gap as long as one can still be filled."""
        recent = await self._journal.recent(run)
        found = _contiguous(recent, last)
        last = found[-1]["step"] if found else last
        if complete or not recent or recent[-1]["step"] > last:
            found += await chunks.read_new(last)
            last = found[-1]["step"] if found else last
            found += (
                [metrics for metrics in recent if metrics["step"] > last] if complete else _contiguous(recent, last)
            )
        return found

    def _evaluations(self, run: str, after_step: int, known: set[int]) -> dict[int, Measurement]:
        found = {}
        for name in list_ids(self._store, f"runs/{run}/evaluations/", ".json"):
            step = int(name) if name.isdigit() else -1
            if step < after_step or step in known:
                continue
            try:
                found[step], _ = read_json(self._store, evaluation_key(run, step))
            except NotFoundError:
                continue
            known.add(step)
        return found


def _is_at_rest(record: RunRecord) -> bool:
    """Nothing more is coming for now, so what is missing stays missing."""
    return not record.attempt_open and record.state is not RunState.PENDING


def _contiguous(recent: list[Measurement], last: int) -> list[Measurement]:
    """Return the part of the recent steps that follows `last` without a gap."""
    found: list[Measurement] = []
    for metrics in recent:
        if metrics["step"] == last + 1 + len(found):
            found.append(metrics)
    return found
