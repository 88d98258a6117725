"""Runs and their checkpoints in the bucket. Every call blocks on the bucket in a thread."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from weft_common.errors import DataLossError, NotFoundError
from weft_common.logging import get_logger
from weft_store import ObjectStore
from weft_store.documents import create_json, list_ids, read_json, update_json
from weft_trainer.core.records import Measurement, RunRecord

__all__ = ["CheckpointFacts", "RunRepository", "attempt_key", "checkpoint_prefix", "run_key"]

_log = get_logger(__name__)


def run_key(run: str) -> str:
    """Return where a run's document lies."""
    return f"runs/{run}/run.json"


def attempt_key(run: str, attempt: int) -> str:
    """Return what names one start of a run's ranks, and where its objects lie."""
    return f"runs/{run}/attempts/{attempt}"


def checkpoint_prefix(run: str, step: int) -> str:
    """Return the folder of a checkpoint, with a slash."""
    return f"runs/{run}/checkpoints/{step:08d}/"


@dataclass(frozen=True)
class CheckpointFacts:
    """
    A complete checkpoint.

    Args:
        step: After which it was saved.
        attempt: That saved it.
        size_bytes: Of all of its objects.
        create_time: When it was complete, RFC 3339.
        evaluation: The last one made of it, or empty.
    """

    step: int
    attempt: int
    size_bytes: int
    create_time: str
    evaluation: Measurement = field(default_factory=dict)


class RunRepository:
    """
    The runs of a bucket.

    Args:
        store: The bucket.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    async def create(self, record: RunRecord) -> None:
        """Write a run that is not there yet. AlreadyExistsError."""
        await asyncio.to_thread(create_json, self._store, run_key(record.run), record.to_document())

    async def get(self, run: str) -> RunRecord:
        """Read a run. NotFoundError."""
        return await asyncio.to_thread(self._get, run)

    def _get(self, run: str) -> RunRecord:
        try:
            return RunRecord.from_document(read_json(self._store, run_key(run))[0])
        except NotFoundError:
            raise NotFoundError(f"there is no run 'runs/{run}': list them with ListRuns.", field="name") from None

    async def change(self, run: str, change: Callable[[RunRecord], RunRecord]) -> RunRecord:
        """Change a run by compare-and-swap; what `change` raises ends it. NotFoundError, ConflictError."""

        def work() -> RunRecord:
            self._get(run)
            document = update_json(
                self._store, run_key(run), lambda document: change(RunRecord.from_document(document)).to_document()
            )
            return RunRecord.from_document(document)

        return await asyncio.to_thread(work)

    async def all(self) -> list[RunRecord]:
        """Read all runs."""
        return await asyncio.to_thread(lambda: [self._get(run) for run in list_ids(self._store, "runs/", "/run.json")])

    async def checkpoints(self, run: str) -> list[CheckpointFacts]:
        """List the complete checkpoints of a run, newest first; one whose manifest cannot be read is left out."""
        return await asyncio.to_thread(self._checkpoints, run)

    async def newest_step(self, run: str) -> int:
        """Return the step of the newest complete checkpoint, 0 where there is none."""
        steps = await asyncio.to_thread(self._complete_steps, run)
        return max(steps, default=0)

    async def newest_checkpoint_s(self, run: str) -> float:
        """Return when the newest complete checkpoint was written, in seconds since 1970; 0 where there is none."""
        return await asyncio.to_thread(self._newest_checkpoint_s, run)

    def _newest_checkpoint_s(self, run: str) -> float:
        steps = self._complete_steps(run)
        if not steps:
            return 0.0
        try:
            return self._store.info(f"{checkpoint_prefix(run, steps[-1])}manifest.json").modified_s
        except NotFoundError:
            # Deleted since it was listed.
            return 0.0

    def _complete_steps(self, run: str) -> list[int]:
        folders = list_ids(self._store, f"runs/{run}/checkpoints/", "/manifest.json")
        return sorted(int(folder) for folder in folders if folder.isdigit())

    def _checkpoints(self, run: str) -> list[CheckpointFacts]:
        found = []
        for step in reversed(self._complete_steps(run)):
            prefix = checkpoint_prefix(run, step)
            try:
                manifest, _ = read_json(self._store, f"{prefix}manifest.json")
                written_s = self._store.info(f"{prefix}manifest.json").modified_s
            except NotFoundError:
                # Deleted since it was listed.
                continue
            except DataLossError as error:
                _log.warning("checkpoint_left_out", run=run, step=step, details=error.message)
                continue
            objects = list(self._store.list(prefix))
            keys = {entry.key for entry in objects}
            found.append(
                CheckpointFacts(
                    step=step,
                    attempt=int(manifest.get("attempt", 0)),
                    size_bytes=sum(entry.size_bytes for entry in objects),
                    create_time=datetime.fromtimestamp(written_s, UTC).isoformat().replace("+00:00", "Z"),
                    evaluation=self._evaluation(prefix) if f"{prefix}evaluation.json" in keys else {},
                )
            )
        return found

    def _evaluation(self, prefix: str) -> Measurement:
        try:
            return read_json(self._store, f"{prefix}evaluation.json")[0]
        except NotFoundError:
            # Deleted since it was listed.
            return {}
