"""One process, or a set of them, that ends with a document in the bucket."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from weft_common.errors import FailedPreconditionError, InternalError
from weft_common.logging import get_logger
from weft_store import ObjectStore
from weft_store.documents import read_json
from weft_trainer.core.ports import BAD_CONFIGURATION, RankJob, RankLauncher

__all__ = ["JobRunner"]

_log = get_logger(__name__)

_STOP_GRACE_S = 3.0
_MOST_STARTS = 2


class JobRunner:
    """
    Runs the jobs of a trainer.

    Args:
        launcher: Starts their processes.
        store: The bucket.
    """

    def __init__(self, launcher: RankLauncher, store: ObjectStore) -> None:
        self._launcher, self._store = launcher, store
        self._locks: dict[str, asyncio.Lock] = {}
        self._wanted: Counter[str] = Counter()

    @asynccontextmanager
    async def alone(self, result: str) -> AsyncIterator[None]:
        """Keep others away that want to write the same document, and the files that it is about."""
        self._wanted[result] += 1
        try:
            async with self._locks.setdefault(result, asyncio.Lock()):
                yield
        finally:
            self._wanted[result] -= 1
            if not self._wanted[result]:
                del self._wanted[result], self._locks[result]

    async def run(self, job: RankJob, result: str, subject: str) -> dict[str, Any]:
        """
        Run a job, once more where it fails, and return what it wrote.

        Args:
            job: What to run.
            result: Key of the document.
            subject: What it works on, for messages.

        Raises:
            FailedPreconditionError: The job says that its subject cannot be used.
            InternalError: It failed every time.
        """
        detail = ""
        for start in range(_MOST_STARTS):
            await self._launcher.clear(job.key)
            group = await self._launcher.start(job, _no_register)
            try:
                ended = await group.wait()
            finally:
                await group.stop(_STOP_GRACE_S)
            _log.info("job_ended", job=job.key, exit_code=ended.code, start=start + 1)
            if ended.code == 0:
                return (await asyncio.to_thread(read_json, self._store, result))[0]
            detail = ended.detail
            if ended.code == BAD_CONFIGURATION:
                raise FailedPreconditionError(f"{subject} cannot be used for this: {detail}")
        raise InternalError(f"work on {subject} failed {_MOST_STARTS} times, the last time with: {detail}")


async def _no_register(facts: Mapping[str, Any]) -> None:
    """Keep no record: a controller that takes this work up again ends what is left of it and begins anew."""
