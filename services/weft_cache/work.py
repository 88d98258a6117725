"""The cache's long work: checks of datasets and collections of garbage, from messages to the core and back."""

import asyncio
import threading
import time
import uuid
from collections.abc import Callable
from typing import TypeVar

from google.longrunning import operations_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from weft.cache.v1 import retention_pb2, service_pb2
from weft.common.v1 import operation_pb2
from weft_cache import converting
from weft_cache.core.garbage import Garbage
from weft_cache.core.reading import Reading
from weft_common.errors import CancelledError
from weft_common.operations import OperationContext, OperationKind, OperationManager
from weft_common.resource_names import parse_name

__all__ = ["COLLECT", "VERIFY", "collection", "start", "verification"]

VERIFY = "verify"
COLLECT = "collect"
R = TypeVar("R")
Progress = Callable[[int, int], None]
Request = retention_pb2.StartVerificationRequest | retention_pb2.CollectGarbageRequest
_STAGES = {VERIFY: ("reading shards", "bytes"), COLLECT: ("looking through datasets", "datasets")}


async def start(operations: OperationManager, kind: str, request: Request) -> operations_pb2.Operation:
    """Write down that work is wanted; the same request id and request again give the same operation."""
    operation_id = f"{kind}-{request.request_id or uuid.uuid4()}"
    return await operations.start(kind, operation_id, request, _metadata(kind, 0, 0))


def verification(reading: Reading) -> OperationKind:
    """Reads every byte of a dataset."""

    async def work(context: OperationContext) -> service_pb2.VerifyDatasetResponse:
        assert isinstance(context.request, retention_pb2.StartVerificationRequest)
        dataset_id = parse_name(context.request.name, "datasets")
        found = await _followed(context, VERIFY, lambda progress: reading.verify(dataset_id, progress))
        return converting.verification_to_proto(found)

    return OperationKind(work, max_running=1)


def collection(garbage: Garbage) -> OperationKind:
    """Finds and deletes garbage."""

    async def work(context: OperationContext) -> retention_pb2.CollectGarbageResponse:
        request = context.request
        assert isinstance(request, retention_pb2.CollectGarbageRequest)
        found = await _followed(
            context,
            COLLECT,
            lambda progress: garbage.collect(delete=request.delete, min_age_s=request.min_age_s, progress=progress),
        )
        return converting.collection_to_proto(found)

    return OperationKind(work, max_running=1)


async def _followed(context: OperationContext, kind: str, work: Callable[[Progress], R]) -> R:
    """Do work in a thread and report how far it is; where this is cancelled, it ends at its next step."""
    loop, stopped = asyncio.get_running_loop(), threading.Event()

    def progress(done: int, total: int) -> None:
        if stopped.is_set():
            raise CancelledError(f"{context.name} was stopped")
        asyncio.run_coroutine_threadsafe(context.report(_metadata(kind, done, total)), loop)

    try:
        return await asyncio.to_thread(work, progress)
    finally:
        stopped.set()


def _metadata(kind: str, done: int, total: int) -> retention_pb2.CatalogWorkMetadata:
    stage, unit = _STAGES[kind]
    now = Timestamp()
    now.FromNanoseconds(time.time_ns())
    return retention_pb2.CatalogWorkMetadata(
        progress=operation_pb2.Progress(stage=stage, completed=done, total=total, unit=unit, update_time=now)
    )
