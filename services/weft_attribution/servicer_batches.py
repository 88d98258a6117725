# ruff: noqa: N802 (RPCs are named as in the proto)
"""
The RPCs of AttributionService on batches, and the long work behind them.

A batch only starts graphs and waits for them: each is work of its own, which any replica takes. It has two of them in
the queue at a time, which is served in the order of coming, so that batches and single graphs take turns.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Sequence

import grpc.aio
from google.longrunning import operations_pb2
from google.protobuf.message import Message

from weft.attribution.v1 import batches_pb2, messages_pb2, service_pb2_grpc
from weft.common.v1 import operation_pb2
from weft_attribution import converting
from weft_attribution.core.graphs import Graphs
from weft_attribution.core.records import GraphRequest, check_graph_id
from weft_attribution.timestamps import timestamp
from weft_common.errors import CancelledError, InvalidArgumentError, NotFoundError, WeftError
from weft_common.operations import OperationContext, OperationKind, OperationManager
from weft_common.resource_names import parse_name
from weft_common.status import error_from_status

__all__ = ["BATCH", "BatchRpcs", "BatchWork"]

Context = grpc.aio.ServicerContext[object, object]
Start = Callable[[GraphRequest], Awaitable[operations_pb2.Operation]]
BATCH = "graph-batch"
MAX_ITEMS = 1_000
_IN_QUEUE = 2
_MOST_BATCHES = 16
_POLL_S = 0.5
_ID = re.compile(r"[a-z0-9-]{1,40}")


def _operation_id(batch_id: str) -> str:
    return f"batch.{batch_id}"


def _check_batch_id(batch_id: str, field: str) -> str:
    if not _ID.fullmatch(batch_id):
        raise InvalidArgumentError(
            f"{field} is {batch_id[:100]!r}; an id is lower-case letters, digits and '-', 1 to 40 of them", field=field
        )
    return batch_id


def _graph_ids(batch_id: str, items: Sequence[batches_pb2.GraphBatchItem]) -> list[str]:
    return [
        check_graph_id(item.graph_id or f"{batch_id}-{place:05d}", f"items[{place}].graph_id")
        for place, item in enumerate(items)
    ]


def _metadata(
    batch_id: str, create_s: float, num_graphs: int, results: Sequence[batches_pb2.GraphBatchResult]
) -> batches_pb2.GraphBatchMetadata:
    failed = sum(bool(result.error_message) for result in results)
    return batches_pb2.GraphBatchMetadata(
        batch=f"graphBatches/{batch_id}",
        progress=operation_pb2.Progress(
            stage="graphs",
            completed=len(results),
            total=num_graphs,
            unit="graphs",
            create_time=timestamp(create_s),
            update_time=timestamp(time.time()),
        ),
        num_graphs=num_graphs,
        num_succeeded=len(results) - failed,
        num_failed=failed,
        num_reused=sum(result.reused for result in results),
    )


class BatchWork:
    """
    The long work behind CreateGraphBatch.

    Args:
        graphs: The domain.
    """

    operations: OperationManager
    start_graph: Start

    def __init__(self, graphs: Graphs) -> None:
        self._graphs = graphs

    def kind(self) -> OperationKind:
        """Many at once in a process: each waits for graphs."""
        return OperationKind(self._run, shared=False, max_running=_MOST_BATCHES, given_up=self._give_up)

    async def _run(self, context: OperationContext) -> Message:
        request, begun = context.request, time.time()
        assert isinstance(request, batches_pb2.CreateGraphBatchRequest)
        graph_ids = _graph_ids(request.batch_id, request.items)
        results: dict[int, batches_pb2.GraphBatchResult] = {}
        queued: dict[int, str] = {}
        upcoming = 0
        while len(results) < len(graph_ids):
            while upcoming < len(graph_ids) and len(queued) < _IN_QUEUE:
                try:
                    queued[upcoming] = await self._start(request, upcoming, graph_ids[upcoming])
                except WeftError as error:
                    if error.retryable:
                        raise
                    results[upcoming] = _result(graph_ids[upcoming], error.message)
                upcoming += 1
            await context.report(_metadata(request.batch_id, begun, len(graph_ids), list(results.values())))
            if queued:
                await self.operations.wait(next(iter(queued.values())), _POLL_S)
            for place, name in list(queued.items()):
                operation = await self.operations.get(name)
                if operation.done:
                    del queued[place]
                    results[place] = _ended(graph_ids[place], operation)
        ordered = [results[place] for place in range(len(graph_ids))]
        told = _metadata(request.batch_id, begun, len(graph_ids), ordered)
        return batches_pb2.GraphBatch(
            name=told.batch,
            state=messages_pb2.GRAPH_STATE_SUCCEEDED,
            num_graphs=told.num_graphs,
            num_succeeded=told.num_succeeded,
            num_failed=told.num_failed,
            num_reused=told.num_reused,
            results=ordered,
            operation=context.name,
        )

    async def _start(self, request: batches_pb2.CreateGraphBatchRequest, place: int, graph_id: str) -> str:
        settings = converting.settings_from_proto(request.items[place].spec)
        # One that a process before this one started is there already, and is taken as it is.
        wanted = GraphRequest(graph_id, settings, time.time(), f"batch {request.batch_id} {place}")
        await self._graphs.check(settings)
        return str((await self.start_graph(wanted)).name)

    async def _give_up(self, context: OperationContext, error: WeftError) -> None:
        """Cancel what is in the queue of a batch that was cancelled."""
        request = context.request
        assert isinstance(request, batches_pb2.CreateGraphBatchRequest)
        for place, graph_id in enumerate(_graph_ids(request.batch_id, request.items)):
            try:
                there = await asyncio.to_thread(self._graphs.request, graph_id)
                if there.request_id == f"batch {request.batch_id} {place}":
                    await self.operations.cancel(self.operations.name(graph_id))
            except NotFoundError:
                continue


def _result(graph_id: str, error_message: str = "", *, reused: bool = False) -> batches_pb2.GraphBatchResult:
    return batches_pb2.GraphBatchResult(graph=f"graphs/{graph_id}", error_message=error_message, reused=reused)


def _ended(graph_id: str, operation: operations_pb2.Operation) -> batches_pb2.GraphBatchResult:
    if operation.HasField("error"):
        return _result(graph_id, operation.error.message or "it failed")
    graph = messages_pb2.Graph()
    operation.response.Unpack(graph)
    return _result(graph_id, reused=graph.statistics.reused)


class BatchRpcs(service_pb2_grpc.AttributionServiceServicer):
    """Starts and describes batches; their work is kept in `work`."""

    work: OperationManager

    async def CreateGraphBatch(
        self, request: batches_pb2.CreateGraphBatchRequest, context: Context
    ) -> operations_pb2.Operation:
        batch_id = _check_batch_id(request.batch_id, "batch_id")
        if not 1 <= len(request.items) <= MAX_ITEMS:
            raise InvalidArgumentError(
                f"items has {len(request.items)} graphs; give 1 to {MAX_ITEMS}, and more in several batches",
                field="items",
            )
        graph_ids = _graph_ids(batch_id, request.items)
        if len(set(graph_ids)) != len(graph_ids):
            raise InvalidArgumentError(
                "two items have the same graph_id; give each graph an id of its own", field="items"
            )
        for place, item in enumerate(request.items):
            try:
                converting.settings_from_proto(item.spec).check()
            except InvalidArgumentError as error:
                raise InvalidArgumentError(f"items[{place}]: {error.message}", field=f"items[{place}]") from error
        if request.validate_only:
            return operations_pb2.Operation(name=self.work.name(_operation_id(batch_id)))
        asked = batches_pb2.CreateGraphBatchRequest(batch_id=batch_id, items=request.items)
        return await self.work.start(
            BATCH, _operation_id(batch_id), asked, _metadata(batch_id, time.time(), len(graph_ids), ())
        )

    async def GetGraphBatch(
        self, request: batches_pb2.GetGraphBatchRequest, context: Context
    ) -> batches_pb2.GraphBatch:
        batch_id = _check_batch_id(parse_name(request.name, "graphBatches"), "name")
        try:
            operation = await self.work.get(self.work.name(_operation_id(batch_id)))
        except NotFoundError:
            raise NotFoundError(f"no batch graphBatches/{batch_id}; create it first") from None
        found = batches_pb2.GraphBatch()
        if operation.HasField("response") and operation.response.Unpack(found):
            return found
        metadata = batches_pb2.GraphBatchMetadata()
        operation.metadata.Unpack(metadata)
        state, message = messages_pb2.GRAPH_STATE_RUNNING, ""
        if operation.done:
            error = error_from_status(operation.error)
            state = messages_pb2.GRAPH_STATE_FAILED
            message = error.message
            if isinstance(error, CancelledError):
                state = messages_pb2.GRAPH_STATE_CANCELLED
        return batches_pb2.GraphBatch(
            name=f"graphBatches/{batch_id}",
            state=state,
            num_graphs=metadata.num_graphs,
            num_succeeded=metadata.num_succeeded,
            num_failed=metadata.num_failed,
            num_reused=metadata.num_reused,
            operation=operation.name,
            error_message=message,
        )
