"""
The part of an operation manager that does the work: it looks at the store, takes up what is free, runs the handlers,
writes what came of them, and beats for as long as it lives.
"""

import asyncio
import contextvars
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace

import structlog
from google.protobuf.message import Message

from weft_common.errors import CancelledError, Code, DataLossError, InternalError, NotFoundError, WeftError
from weft_common.interceptors import as_weft_error
from weft_common.logging import get_logger
from weft_common.operation_census import OperationCensus
from weft_common.operation_kinds import OperationContext, OperationKind, RetryPolicy, packed_any
from weft_common.operation_runs import End, Run, wait_for
from weft_common.operation_store import OperationStore, Record, change_record, read_record
from weft_common.status import status_from_error

__all__ = ["OperationWorker"]

_LOG = get_logger(__name__)
# A report is written at once when the one before is this old, and with the next look otherwise.
_REPORT_EVERY_S = 0.5
# One that hangs in the store is given up by its caller, and holds its thread until the store lets go.
_BEATS_AT_ONCE = 4


class OperationWorker:
    """
    Does the long work of one service in this process.

    Args:
        store: Where the state lies; called in threads.
        kinds: What work there is, by name.
        id_of: Gives the id within an operation's name.
        lease_s: Seconds without a beat after which another worker takes work over.
        poll_s: Seconds between looks at the store.
        retry: When work that failed is tried again.

    Attributes:
        runs: What runs here, by name.
        ended: Names that need no more looks.
        unfinished: How much of each kind is not done anywhere, as of the last look.
        wake: Set, it has the store looked at again at once.
        changed: Set, and replaced by another, when something was written.
    """

    def __init__(
        self,
        store: OperationStore,
        kinds: Mapping[str, OperationKind],
        id_of: Callable[[str], str],
        *,
        lease_s: float,
        poll_s: float,
        retry: RetryPolicy,
    ) -> None:
        self._store, self._kinds, self._id_of = store, kinds, id_of
        self._census = OperationCensus(kinds)
        self._lease_s, self._poll_s, self._retry = lease_s, poll_s, retry
        self._owner = uuid.uuid4().hex
        self.runs: dict[str, Run] = {}
        self.ended: set[str] = set()
        self.unfinished: Counter[str] = Counter()
        # Owner, beat and the monotonic time at which they were first seen, of work that others do.
        self._seen: dict[str, tuple[str, int, float]] = {}
        self.wake = asyncio.Event()
        self.changed = asyncio.Event()
        # A beat that waits behind other work in the loop's threads would have its own work taken over.
        self._beats = ThreadPoolExecutor(_BEATS_AT_ONCE, "beats")

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """
        Do the work for as long as the context lasts.

        At its end unfinished work is let go of at once, for the next manager.
        """
        looking = asyncio.create_task(self._look_forever(), context=contextvars.Context())
        beating = asyncio.create_task(self._beat_forever(), context=contextvars.Context())
        try:
            yield
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
            try:
                # Work may take longer to end than its claim lasts: until then nobody else takes it up.
                await self._let_go()
            finally:
                beating.cancel()
                await asyncio.gather(beating, return_exceptions=True)

    # ---- looking at the store ----

    async def _look_forever(self) -> None:
        while True:
            self.wake.clear()
            try:
                await self._look()
            except Exception as error:
                _LOG.warning("operations could not be looked at", error=str(error))
            await wait_for(self.wake, self._poll_s)

    async def _look(self) -> None:
        for name in list(self.runs):
            await self._write_report(name)
        records = await asyncio.to_thread(self._read_unfinished)
        # First come, first served; a name's place in the alphabet is nobody's merit.
        for name, record in sorted(records.items(), key=lambda item: (item[1].create_s, item[0])):
            await self._consider(name, record)
        self.unfinished = Counter(record.kind for record in records.values() if not record.done)
        self._seen = {name: seen for name, seen in self._seen.items() if name in records}
        self._census.count(records, self.runs)

    def _read_unfinished(self) -> dict[str, Record]:
        names = set(self._store.list())
        self.ended &= names
        records = {}
        for name in sorted(names - self.ended):
            try:
                records[name], _ = read_record(self._store, name)
            except NotFoundError:
                continue
            except DataLossError as error:
                self.ended.add(name)
                _LOG.error("an operation is unreadable", operation=name, error=error.message)
        return records

    async def _consider(self, name: str, record: Record) -> None:
        run = self.runs.get(name)
        kind = self._kinds.get(record.kind)
        if record.done:
            self.ended.add(name)
            if run is not None:
                run.stop(End.LOST)
        elif run is not None:
            if not self._is_mine(run.shared, run.create_s)(record):
                run.stop(End.LOST)
            elif record.cancel_requested:
                run.stop(End.CANCELLED)
        elif kind is None:
            self.ended.add(name)
            _LOG.error("an operation is of an unknown kind", operation=name, kind=record.kind)
        elif kind.shared or self._is_free(name, record):
            await self._take_up(name, kind, record)

    def _is_free(self, name: str, record: Record) -> bool:
        if not record.owner:
            return True
        now = time.monotonic()
        owner, beat, first_s = self._seen.get(name, ("", 0, 0.0))
        if (owner, beat) != (record.owner, record.beat):
            self._seen[name] = (record.owner, record.beat, now)
            return False
        return now - first_s >= self._lease_s

    async def _take_up(self, name: str, kind: OperationKind, record: Record) -> None:
        if record.cancel_requested:
            await self._fail(name, kind, record, self._is_still(record), _cancelled(name))
            return
        running = sum(1 for run in self.runs.values() if run.kind == record.kind)
        if kind.max_running is not None and running >= kind.max_running:
            return
        begun = time.monotonic()
        if not kind.shared:
            if record.claims >= self._retry.max_claims:
                error = InternalError(f"{name} was taken up {record.claims} times and never ended; it is given up")
                await self._fail(name, kind, record, self._is_still(record), error)
                return
            mine = replace(record, owner=self._owner, beat=record.beat + 1, claims=record.claims + 1)
            was = self._is_still(record)
            stored = await asyncio.to_thread(
                change_record, self._store, name, lambda there: mine if was(there) and there == record else None
            )
            if stored.owner != self._owner:
                return
            record = stored
        else:
            # What was read before may have been done here since.
            record, _ = await asyncio.to_thread(read_record, self._store, name)
            if record.done:
                return
        task = asyncio.create_task(self._work(name, kind, record), name=name, context=contextvars.Context())
        self.runs[name] = Run(record.kind, kind.shared, task, begun, record.create_s)
        task.add_done_callback(lambda _: self._forget(name))

    def _forget(self, name: str) -> None:
        self.runs.pop(name, None)
        self.wake.set()
        self._notify()

    def _notify(self) -> None:
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    # ---- doing the work ----

    async def _work(self, name: str, kind: OperationKind, record: Record) -> None:
        structlog.contextvars.bind_contextvars(operation=name)
        if record.request_id:
            structlog.contextvars.bind_contextvars(request_id=record.request_id)
        _LOG.info("operation begins", kind=record.kind, claims=record.claims)
        failures = record.failures
        mine = self._is_mine(kind.shared, record.create_s)
        try:
            while True:
                begun = time.monotonic()
                try:
                    response = await kind.handler(self._context(name, record))
                    await self._finish(name, mine, response=packed_any(response))
                    return
                except Exception as raised:
                    error = as_weft_error(raised)
                failures = 1 if time.monotonic() - begun > self._retry.reset_after_s else failures + 1
                if not error.retryable or failures >= self._retry.max_failures:
                    await self._fail(name, kind, record, mine, error)
                    return
                delay_s = self._retry.delay_s(failures, error.retry_after_s)
                _LOG.warning("operation failed and is tried again", error=error.message, delay_s=delay_s)
                await self._note_failures(name, kind.shared, failures)
                await asyncio.sleep(delay_s)
                record, _ = await asyncio.to_thread(read_record, self._store, name)
        except asyncio.CancelledError:
            run = self.runs.get(name)
            end = run.end if run is not None else None
            _LOG.info("operation stops", why=end.value if end else "unknown")
            if end is not End.CANCELLED:
                raise
            await self._fail(name, kind, record, mine, _cancelled(name))
        except Exception as error:
            # The store fails: the claim runs out, or the next look takes the work up again.
            _LOG.error("operation cannot go on", exc_info=error)

    def _context(self, name: str, record: Record) -> OperationContext:
        return OperationContext(name, self._id_of(name), record, self._report)

    async def _fail(
        self, name: str, kind: OperationKind, record: Record, still: Callable[[Record], bool], error: WeftError
    ) -> None:
        """Write down that nobody goes on with work; not before its kind knows, and where that fails, another time."""
        if await kind.give_up(self._context(name, record), error):
            await self._finish(name, still, error=error)

    async def _finish(
        self,
        name: str,
        still: Callable[[Record], bool],
        *,
        response: bytes = b"",
        error: WeftError | None = None,
    ) -> None:
        """Write the end down, for as long as it takes, if the work still is as `still` says."""
        failure = b"" if error is None else status_from_error(error).SerializeToString()
        run = self.runs.get(name)
        unwritten = run.unwritten if run is not None else None
        is_first = False

        def end(record: Record) -> Record | None:
            nonlocal is_first
            is_first = not record.done and still(record)
            if not is_first:
                return None
            metadata = record.metadata if unwritten is None else unwritten
            return replace(record, done=True, owner="", response=response, error=failure, metadata=metadata)

        delay_s = 0.1
        while True:
            try:
                ended = await asyncio.to_thread(change_record, self._store, name, end)
                if is_first:
                    self._census.ended(ended.kind, Code.OK if error is None else error.code)
                break
            except NotFoundError:
                break
            except Exception as raised:
                _LOG.warning("the end of an operation could not be written yet", error=str(raised))
            await asyncio.sleep(delay_s)
            delay_s = min(5.0, delay_s * 2)
        self._notify()
        _LOG.info("operation ends", operation=name, error=error.message if error else None)

    async def _note_failures(self, name: str, shared: bool, failures: int) -> None:
        # Replicas of shared work each count their own.
        if not shared:
            await asyncio.to_thread(
                change_record,
                self._store,
                name,
                lambda record: replace(record, failures=failures) if record.owner == self._owner else None,
            )

    async def _report(self, name: str, metadata: Message) -> None:
        run = self.runs.get(name)
        if run is None:
            return
        run.unwritten = packed_any(metadata)
        if time.monotonic() - run.written_s >= _REPORT_EVERY_S:
            await self._write_report(name)

    async def _write_report(self, name: str) -> None:
        run = self.runs.get(name)
        if run is None or run.unwritten is None:
            return
        unwritten = run.unwritten
        mine = self._is_mine(run.shared, run.create_s)
        try:
            await asyncio.to_thread(
                change_record,
                self._store,
                name,
                lambda record: replace(record, metadata=unwritten) if mine(record) and not record.done else None,
            )
        except WeftError as error:
            _LOG.warning("progress could not be written", operation=name, error=error.message)
            return
        run.written_s = time.monotonic()
        if run.unwritten is unwritten:
            run.unwritten = None
        self._notify()

    def _is_mine(self, shared: bool, create_s: float) -> Callable[[Record], bool]:
        # Shared work has no owner; deleted and asked for anew under its name it is other work.
        return lambda record: record.create_s == create_s if shared else record.owner == self._owner

    def _is_still(self, seen: Record) -> Callable[[Record], bool]:
        return lambda record: (record.owner, record.beat) == (seen.owner, seen.beat)

    # ---- staying the owner ----

    async def _beat_forever(self) -> None:
        while True:
            await asyncio.sleep(self._lease_s / 4)
            for name, run in list(self.runs.items()):
                if not run.shared:
                    await self._beat(name, run)

    async def _beat(self, name: str, run: Run) -> None:
        begun = time.monotonic()
        try:
            async with asyncio.timeout(self._lease_s / 4):
                record = await asyncio.get_running_loop().run_in_executor(
                    self._beats, change_record, self._store, name, self._next_beat
                )
            if record.owner == self._owner:
                run.alive_s = begun
            elif not record.done:
                run.stop(End.LOST)
        except Exception as error:
            _LOG.warning("a beat could not be written", operation=name, error=str(error))
        if time.monotonic() - run.alive_s > self._lease_s:
            # Others may think this manager dead and do the work: stop before both do.
            run.stop(End.LOST)

    def _next_beat(self, there: Record) -> Record | None:
        return replace(there, beat=there.beat + 1) if there.owner == self._owner and not there.done else None

    async def _let_go(self) -> None:
        runs = dict(self.runs)
        for run in runs.values():
            run.stop(End.STOPPING)
        await asyncio.gather(*(run.task for run in runs.values()), return_exceptions=True)
        for name, run in runs.items():
            unwritten, mine = run.unwritten, self._is_mine(run.shared, run.create_s)

            def let_go(
                record: Record, unwritten: bytes | None = unwritten, mine: Callable[[Record], bool] = mine
            ) -> Record | None:
                if record.done or not mine(record):
                    return None
                metadata = record.metadata if unwritten is None else unwritten
                return replace(record, owner="", claims=max(0, record.claims - 1), metadata=metadata)

            try:
                await asyncio.to_thread(change_record, self._store, name, let_go)
            except WeftError as error:
                _LOG.warning("an operation could not be let go of", operation=name, error=error.message)


def _cancelled(name: str) -> CancelledError:
    return CancelledError(f"{name} was cancelled, as was asked")
