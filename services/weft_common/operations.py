"""
Long work that outlives its call, its process and its machine (AIP-151).

Every manager of a service looks at the same store. Work of a plain kind is claimed by one of them, who beats for as
long as it lives; when the beat stops, another claims it and runs the handler again. Work of a shared kind is run by
all of them at once, who divide it among themselves. So handlers must be resumable: they find what was committed and go
on from there. Cancelling is a mark in the store, which whoever runs the work sees.

No clock is compared between machines: a claim is over when its beat was not seen to move for `lease_s` here.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from google.longrunning import operations_pb2
from google.protobuf.message import Message

from weft_common.errors import (
    AlreadyExistsError,
    ConflictError,
    FailedPreconditionError,
    InternalError,
    NotFoundError,
)
from weft_common.logging import current_request_id
from weft_common.operation_kinds import OperationContext, OperationKind, RetryPolicy, packed_any
from weft_common.operation_runs import wait_for
from weft_common.operation_store import MemoryOperationStore, OperationStore, Record, change_record, read_record
from weft_common.operation_worker import OperationWorker
from weft_common.pages import paginate
from weft_common.resource_names import check_id

__all__ = [
    "MemoryOperationStore",
    "OperationContext",
    "OperationKind",
    "OperationManager",
    "OperationStore",
    "RetryPolicy",
]


class OperationManager:
    """
    Starts, runs, resumes and cancels the long work of one service.

    Args:
        service: Stands in the names: `operations/{service}-{id}`.
        store: Where the state lies; called in threads.
        kinds: What work there is, by name; a name stays as it is for as long as stored work has it.
        lease_s: Seconds without a beat after which another manager takes work over.
        poll_s: Seconds between looks at the store.
    """

    def __init__(
        self,
        service: str,
        store: OperationStore,
        kinds: Mapping[str, OperationKind],
        *,
        lease_s: float = 10.0,
        poll_s: float = 1.0,
        retry: RetryPolicy | None = None,
    ) -> None:
        self._prefix = f"operations/{service}-"
        self._store = store
        self._kinds = dict(kinds)
        self._poll_s = poll_s
        self._worker = OperationWorker(
            store, self._kinds, self.operation_id, lease_s=lease_s, poll_s=poll_s, retry=retry or RetryPolicy()
        )

    def name(self, operation_id: str) -> str:
        """Return the name of an operation of this service."""
        return f"{self._prefix}{operation_id}"

    def operation_id(self, name: str) -> str:
        """Return the id within a name. NotFoundError where it is no name of this service's."""
        if not name.startswith(self._prefix):
            raise NotFoundError(f"{name!r:.120} is no operation of this service; its names are {self._prefix}ID")
        return check_id(name.removeprefix(self._prefix), field="name")

    async def start(
        self, kind: str, operation_id: str, request: Message, metadata: Message
    ) -> operations_pb2.Operation:
        """
        Write the work down and have it done; the same id and request again give the same operation.

        Raises:
            AlreadyExistsError: The id stands for other work.
        """
        if kind not in self._kinds:
            raise InternalError(f"there is no kind of work named {kind!r}; known are {sorted(self._kinds)}")
        name = self.name(check_id(operation_id, field="operation_id"))
        now = time.time()
        record = Record(
            kind=kind,
            request=packed_any(request),
            metadata=packed_any(metadata),
            create_s=now,
            update_s=now,
            request_id=current_request_id() or "",
        )
        try:
            await asyncio.to_thread(self._store.put, name, record.encode(), etag=None, create=True)
        except (AlreadyExistsError, ConflictError):
            there, _ = await asyncio.to_thread(read_record, self._store, name)
            if (there.kind, there.request) != (record.kind, record.request):
                raise AlreadyExistsError(
                    f"{name} is another request's work ({there.kind}); give this one an id of its own"
                ) from None
            record = there
        else:
            self._worker.unfinished[kind] += 1
        self._worker.ended.discard(name)
        self._worker.wake.set()
        return record.to_operation(name)

    async def get(self, name: str) -> operations_pb2.Operation:
        """Return an operation as it is now. NotFoundError."""
        return (await self.record(name)).to_operation(name)

    async def record(self, name: str) -> Record:
        """Return all that is known of an operation now, what was asked for included. NotFoundError."""
        self.operation_id(name)
        record, _ = await asyncio.to_thread(read_record, self._store, name)
        run = self._worker.runs.get(name)
        if run is not None and run.unwritten is not None and not record.done:
            record = replace(record, metadata=run.unwritten)
        return record

    async def names(self) -> Sequence[str]:
        """Return the names of all operations of this service."""
        return await asyncio.to_thread(self._store.list)

    def unfinished(self, kind: str) -> int:
        """How much work of a kind is not done, here or elsewhere, as of the last look."""
        return self._worker.unfinished[kind]

    async def list(self, page_size: int, page_token: str) -> tuple[list[operations_pb2.Operation], str]:
        """Return one page of operations, by name, and the next page's token."""
        page, next_token = paginate(await self.names(), page_size, page_token)
        found = []
        for name in page:
            try:
                found.append(await self.get(name))
            except NotFoundError:
                continue
        return found, next_token

    async def wait(self, name: str, timeout_s: float) -> operations_pb2.Operation:
        """Return the operation once it is done, or as it is after `timeout_s`."""
        until = time.monotonic() + timeout_s
        while True:
            changed = self._worker.changed
            operation = await self.get(name)
            left = until - time.monotonic()
            if operation.done or left <= 0:
                return operation
            await wait_for(changed, min(left, self._poll_s))

    async def cancel(self, name: str) -> None:
        """Ask for the work to stop; work that is done stays as it is. NotFoundError."""
        self.operation_id(name)
        await asyncio.to_thread(
            change_record,
            self._store,
            name,
            lambda record: None if record.done else replace(record, cancel_requested=True),
        )
        self._worker.wake.set()

    async def delete(self, name: str) -> None:
        """
        Forget an operation that is done.

        Raises:
            NotFoundError: There is none.
            FailedPreconditionError: It is not done.
        """
        self.operation_id(name)
        record, _ = await asyncio.to_thread(read_record, self._store, name)
        if not record.done:
            raise FailedPreconditionError(f"{name} is not done; cancel it and wait for its end first")
        await asyncio.to_thread(self._store.delete, name)

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """
        Do the work for as long as the context lasts.

        At its end unfinished work is let go of at once, for the next manager.
        """
        async with self._worker.run():
            yield
