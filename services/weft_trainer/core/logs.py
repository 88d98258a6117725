"""What the ranks of a run wrote: asked of those that run, kept in the bucket once they have ended."""

import asyncio
from collections.abc import Sequence

from weft_common.errors import InvalidArgumentError, NotFoundError, WeftError
from weft_common.logging import get_logger
from weft_store import ObjectStore
from weft_store.documents import encode_json, read_json
from weft_trainer.core.ports import RankGroup, RankLauncher, RankLog
from weft_trainer.core.runs import RunRepository, attempt_key

__all__ = ["MOST_LOG_BYTES", "RunLogs", "keep_logs"]

_log = get_logger(__name__)

MOST_LOG_BYTES = 1 << 20
_USUAL_LOG_BYTES = 64 << 10


def _logs_key(run: str, attempt: int) -> str:
    return f"{attempt_key(run, attempt)}/logs.json"


async def keep_logs(store: ObjectStore, run: str, attempt: int, group: RankGroup) -> None:
    """Copy the end of each log to the bucket; a log that cannot be had is no reason to stop."""
    try:
        logs = await group.logs(_USUAL_LOG_BYTES)
        document = {"logs": [{"source": log.source, "text": log.text} for log in logs]}
        await asyncio.to_thread(store.put, _logs_key(run, attempt), encode_json(document))
    except WeftError as error:
        _log.warning("logs_not_kept", run=run, attempt=attempt, error=error.message)


class RunLogs:
    """
    Reads logs.

    Args:
        store: The bucket.
        runs: The runs in it.
        launcher: Finds ranks that run.
    """

    def __init__(self, store: ObjectStore, runs: RunRepository, launcher: RankLauncher) -> None:
        self._store = store
        self._runs = runs
        self._launcher = launcher

    async def get(self, run: str, attempt: int, max_bytes: int) -> tuple[int, Sequence[RankLog]]:
        """
        Return the end of each log of an attempt, and which attempt that is.

        Args:
            run: Id of the run.
            attempt: Which one; 0 means the last.
            max_bytes: Of each log; 0 means 64 KiB.

        Raises:
            NotFoundError: No such run or attempt, or nothing was kept of it.
            InvalidArgumentError: An argument is out of range.
        """
        if not 0 <= max_bytes <= MOST_LOG_BYTES:
            raise InvalidArgumentError(
                f"max_bytes is {max_bytes}: give 1 to {MOST_LOG_BYTES}, or 0 for {_USUAL_LOG_BYTES}.", field="max_bytes"
            )
        max_bytes = max_bytes or _USUAL_LOG_BYTES
        record = await self._runs.get(run)
        if not 0 <= attempt <= record.attempt:
            raise NotFoundError(
                f"{record.name} has no attempt {attempt}, its last is {record.attempt}: give one of these, or 0.",
                field="attempt",
            )
        attempt = attempt or record.attempt
        if attempt == record.attempt and record.attempt_open:
            try:
                facts, _ = await asyncio.to_thread(read_json, self._store, f"{attempt_key(run, attempt)}/attempt.json")
            except NotFoundError:
                return attempt, []
            group = await self._launcher.find(attempt_key(run, attempt), facts)
            return attempt, await group.logs(max_bytes)
        if not attempt:
            return 0, []
        try:
            document, _ = await asyncio.to_thread(read_json, self._store, _logs_key(run, attempt))
        except NotFoundError:
            raise NotFoundError(
                f"nothing was kept of the logs of attempt {attempt} of {record.name}: look at another attempt, or "
                "where the cluster collects logs.",
                field="attempt",
            ) from None
        return attempt, [
            RankLog(entry["source"], entry["text"].encode()[-max_bytes:].decode(errors="replace"))
            for entry in document["logs"]
        ]
