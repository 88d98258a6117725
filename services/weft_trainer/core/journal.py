"""
The metrics of runs: what ranks report is durable before they hear that it arrived.

Three places hold them, and a reader takes each step from the first that has it:
    runs/{run}/attempts/{n}/metrics-*.jsonl   closed chunks, written by rank 0 itself
    runs/{run}/attempts/{n}/recent.json       the last reported steps, written here before a report is answered
    memory                                    the same, while this controller lives
A run that resumes does the steps after its checkpoint again with the same outcome, so for a reader steps only rise.
"""

import asyncio
import json
from collections.abc import Iterator, Sequence

from weft_common.errors import DataLossError, NotFoundError
from weft_store import ObjectStore
from weft_store.documents import encode_json, read_json
from weft_trainer.core.records import Measurement

__all__ = ["ChunkReader", "Journal"]

_MOST_RECENT = 256


def _attempts(store: ObjectStore, run: str) -> list[int]:
    return sorted(int(name) for name in store.list_folders(f"runs/{run}/attempts/") if name.isdigit())


class ChunkReader:
    """
    Reads the closed chunks of a run, each once, whenever asked.

    Args:
        store: The bucket.
        run: Id of the run.
    """

    def __init__(self, store: ObjectStore, run: str) -> None:
        self._store = store
        self._run = run
        self._seen: set[str] = set()

    async def read_new(self, after_step: int) -> list[Measurement]:
        """Return the metrics of chunks that were closed since the last call, steps rising and above `after_step`."""
        return await asyncio.to_thread(lambda: list(self._read_new(after_step)))

    def _read_new(self, last: int) -> Iterator[Measurement]:
        for attempt in _attempts(self._store, self._run):
            prefix = f"runs/{self._run}/attempts/{attempt}/metrics-"
            for info in self._store.list(prefix):
                if info.key in self._seen or not info.key.endswith(".jsonl"):
                    continue
                self._seen.add(info.key)
                for metrics in _parse_lines(info.key, self._store.get(info.key)):
                    if metrics["step"] > last:
                        last = metrics["step"]
                        yield metrics


def _parse_lines(key: str, data: bytes) -> Iterator[Measurement]:
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            metrics = json.loads(line)
            metrics["step"] = int(metrics["step"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataLossError(
                f"line {number} of {key!r} is no metrics ({error}): restore it from a backup."
            ) from error
        yield metrics


class Journal:
    """
    The recent metrics of every run that reports here.

    Args:
        store: The bucket.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._recent: dict[str, dict[int, Measurement]] = {}
        self._attempt: dict[str, int] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def add(self, run: str, attempt: int, metrics: Sequence[Measurement]) -> None:
        """Take reported steps, durably; a step that is there already is replaced."""
        if not metrics:
            return
        async with self._locks.setdefault(run, asyncio.Lock()):
            recent = await self._load(run)
            if self._attempt.get(run) != attempt:
                # The new attempt begins at its checkpoint; what the old one did beyond is done again.
                first = int(metrics[0]["step"])
                recent = {step: entry for step, entry in recent.items() if step < first}
                self._attempt[run] = attempt
            recent = {**recent, **{int(entry["step"]): entry for entry in metrics}}
            recent = dict(sorted(recent.items())[-_MOST_RECENT:])
            document = encode_json({"metrics": list(recent.values())})
            await asyncio.to_thread(self._store.put, f"runs/{run}/attempts/{attempt}/recent.json", document)
            self._recent[run] = recent

    async def recent(self, run: str) -> list[Measurement]:
        """Return the last reported steps, rising."""
        async with self._locks.setdefault(run, asyncio.Lock()):
            return list((await self._load(run)).values())

    def forget(self, run: str) -> None:
        """Free the memory of a run that ended; the bucket keeps it."""
        self._recent.pop(run, None)
        self._attempt.pop(run, None)

    async def _load(self, run: str) -> dict[int, Measurement]:
        if run not in self._recent:
            self._recent[run] = await asyncio.to_thread(self._read_recent, run)
        return self._recent[run]

    def _read_recent(self, run: str) -> dict[int, Measurement]:
        for attempt in reversed(_attempts(self._store, run)):
            try:
                document, _ = read_json(self._store, f"runs/{run}/attempts/{attempt}/recent.json")
            except NotFoundError:
                continue
            self._attempt[run] = attempt
            return {int(entry["step"]): entry for entry in document["metrics"]}
        return {}
