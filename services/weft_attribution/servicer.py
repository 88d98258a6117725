"""weft.attribution.v1.AttributionService: from messages to the graphs and back."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import grpc.aio
from google.longrunning import operations_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2

from weft.attribution.v1 import messages_pb2, service_pb2
from weft.common.v1 import operation_pb2
from weft_attribution import converting
from weft_attribution.core.graphs import Graphs
from weft_attribution.core.reading import GraphReading
from weft_attribution.core.records import GraphRequest, check_graph_id
from weft_attribution.core.through_attention import AttentionReading
from weft_attribution.naming import graph_id_of
from weft_attribution.servicer_attention import AttentionRpcs
from weft_attribution.servicer_batches import BatchRpcs
from weft_attribution.servicer_reading import ReadingRpcs
from weft_attribution.servicer_steering import SteeringDomain, SteeringRpcs
from weft_attribution.timestamps import timestamp
from weft_common.errors import CancelledError, FailedPreconditionError, NotFoundError, ResourceExhaustedError
from weft_common.operations import OperationContext, OperationKind, OperationManager
from weft_common.pages import newest_first, paginate

__all__ = ["AttributionServicer", "GraphWork"]

Context = grpc.aio.ServicerContext[object, object]
KIND = "graph"
_WATCH_S = 0.3
_DEFAULT_PAGE = 100


def _metadata(graph_id: str, create_s: float, stage: str, done: int, total: int) -> messages_pb2.GraphMetadata:
    return messages_pb2.GraphMetadata(
        graph=f"graphs/{graph_id}",
        progress=operation_pb2.Progress(
            stage=stage,
            completed=done,
            total=total,
            unit="rows",
            create_time=timestamp(create_s),
            update_time=timestamp(time.time()),
        ),
    )


class GraphWork:
    """
    The long work behind CreateGraph.

    Args:
        graphs: The domain.
        observe: Told the stage seconds of every graph that was computed.
    """

    def __init__(self, graphs: Graphs, observe: Callable[[Mapping[str, float]], None]) -> None:
        self._graphs = graphs
        self._observe = observe

    def kind(self) -> OperationKind:
        """One graph at a time in a process: memory is bounded by one."""
        return OperationKind(self._build, shared=False, max_running=1)

    async def _build(self, context: OperationContext) -> Message:
        request = await asyncio.to_thread(self._graphs.request, context.resource)
        latest = ("waiting", 0, 0)
        stopped = False

        def progress(stage: str, done: int, total: int) -> None:
            nonlocal latest
            if stopped:
                raise CancelledError("the graph was cancelled")
            latest = (stage, done, total)

        task = asyncio.ensure_future(self._graphs.build(request, progress))
        reported = latest
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=_WATCH_S)
                if latest != reported:
                    reported = latest
                    await context.report(_metadata(request.graph_id, request.create_s, *reported))
        except asyncio.CancelledError:
            stopped = True
            task.cancel()
            await asyncio.wait({task})
            raise
        document = task.result()
        self._observe(document["statistics"]["stage_seconds"])
        return converting.finished_to_proto(request, context.name, document, with_json=False)


class AttributionServicer(ReadingRpcs, AttentionRpcs, SteeringRpcs, BatchRpcs):
    """
    Answers the RPCs on graphs.

    Args:
        graphs: The domain.
        reading: What finished graphs tell.
        attention: What the attention behind them tells.
        steering: What changes in the model show of them.
        operations: Where the long work is kept.
        max_message_bytes: Largest answer that may be sent.
        max_waiting: Most graphs that are not done before more are refused.
    """

    def __init__(
        self,
        graphs: Graphs,
        reading: GraphReading,
        attention: AttentionReading,
        steering: SteeringDomain,
        operations: OperationManager,
        *,
        max_message_bytes: int = 64 << 20,
        max_waiting: int = 1000,
    ) -> None:
        self.reading, self.attention = reading, attention
        self.steering, self.work = steering, operations
        self._graphs = graphs
        self._operations = operations
        self._max_message_bytes = max_message_bytes
        self._max_waiting = max_waiting

    async def CreateGraph(self, request: service_pb2.CreateGraphRequest, context: Context) -> operations_pb2.Operation:
        graph_id = check_graph_id(request.graph_id)
        settings = converting.settings_from_proto(request.spec)
        await self._graphs.check(settings)
        wanted = GraphRequest(graph_id, settings, time.time(), request.request_id)
        if request.validate_only:
            return operations_pb2.Operation(name=self._operations.name(graph_id))
        if self._operations.unfinished(KIND) >= self._max_waiting and not await self._is_there(graph_id):
            raise ResourceExhaustedError(
                f"{self._max_waiting} graphs wait or are being made already; ask again when some are done, ask for "
                "many in a batch, or raise WEFT_ATTRIBUTION_MAX_WAITING_GRAPHS"
            )
        return await self.start_graph(wanted)

    async def _is_there(self, graph_id: str) -> bool:
        """Whether a graph was asked for already: a request that is sent again takes no place in the queue."""
        try:
            await asyncio.to_thread(self._graphs.request, graph_id)
        except NotFoundError:
            return False
        return True

    async def start_graph(self, wanted: GraphRequest) -> operations_pb2.Operation:
        """Write a graph's request down and start its work; the same one again is the same work."""
        graph_id = wanted.graph_id
        stored = await asyncio.to_thread(self._graphs.begin, wanted)
        asked = service_pb2.CreateGraphRequest(
            graph_id=graph_id, spec=converting.graph_to_proto(stored, "").spec, request_id=stored.request_id
        )
        return await self._operations.start(
            KIND, graph_id, asked, _metadata(graph_id, stored.create_s, "waiting", 0, 0)
        )

    async def WatchGraph(
        self, request: service_pb2.WatchGraphRequest, context: Context
    ) -> AsyncIterator[service_pb2.WatchGraphResponse]:
        graph_id = graph_id_of(request.name)
        name = self._operations.name(graph_id)
        shown: bytes | None = None
        mark = ""
        while True:
            graph, mark = await self._described(graph_id, mark)
            metadata = messages_pb2.GraphMetadata(graph=graph.name)
            try:
                (await self._operations.get(name)).metadata.Unpack(metadata)
            except NotFoundError:
                # The record of the work may have been deleted; the graph itself says enough.
                metadata.graph = graph.name
            final = graph.state != messages_pb2.GRAPH_STATE_RUNNING
            now = metadata.SerializeToString(deterministic=True)
            if final or now != shown or graph.json:
                shown = now
                yield service_pb2.WatchGraphResponse(metadata=metadata, graph=graph)
            if final:
                return
            await asyncio.sleep(_WATCH_S)

    async def GetGraph(self, request: service_pb2.GetGraphRequest, context: Context) -> messages_pb2.Graph:
        return (await self._described(graph_id_of(request.name)))[0]

    async def ListGraphs(
        self, request: service_pb2.ListGraphsRequest, context: Context
    ) -> service_pb2.ListGraphsResponse:
        page, next_token = paginate(
            await asyncio.to_thread(self._graphs.requests),
            request.page_size,
            request.page_token,
            key=lambda item: newest_first(item.create_s, item.graph_id),
            default_size=_DEFAULT_PAGE,
        )
        graphs = await asyncio.gather(*(self._summarised(item) for item in page))
        return service_pb2.ListGraphsResponse(graphs=graphs, next_page_token=next_token)

    async def DeleteGraph(
        self, request: service_pb2.DeleteGraphRequest, context: Context
    ) -> service_pb2.DeleteGraphResponse:
        graph_id = graph_id_of(request.name)
        graph = await self._summarised(await asyncio.to_thread(self._graphs.request, graph_id))
        if graph.state == messages_pb2.GRAPH_STATE_RUNNING:
            raise FailedPreconditionError(f"{graph.name} is being computed; cancel {graph.operation} first")
        await asyncio.to_thread(self._graphs.delete, graph_id)
        try:
            await self._operations.delete(graph.operation)
        except NotFoundError:
            return service_pb2.DeleteGraphResponse()
        return service_pb2.DeleteGraphResponse()

    async def PruneGraph(self, request: service_pb2.PruneGraphRequest, context: Context) -> messages_pb2.Graph:
        graph_id = graph_id_of(request.name)
        record, document = await asyncio.to_thread(
            self._graphs.pruned, graph_id, request.node_threshold, request.edge_threshold
        )
        return await self._finished(record, self._operations.name(graph_id), document, with_json=True)

    async def Intervene(
        self, request: service_pb2.InterveneRequest, context: Context
    ) -> messages_pb2.InterventionResult:
        changes = converting.changes_from_proto(request)
        return converting.result_to_proto(await self._graphs.intervene(graph_id_of(request.name), changes))

    async def _finished(
        self, record: GraphRequest, name: str, document: Mapping[str, Any], *, with_json: bool
    ) -> messages_pb2.Graph:
        graph = await asyncio.to_thread(converting.finished_to_proto, record, name, document, with_json=with_json)
        size_bytes = graph.ByteSize()
        if size_bytes > self._max_message_bytes:
            raise ResourceExhaustedError(
                f"{graph.name} takes {size_bytes} bytes with these thresholds, more than the "
                f"{self._max_message_bytes} of one answer; ask PruneGraph for it with lower thresholds"
            )
        return graph

    async def _described(self, graph_id: str, seen: str = "") -> tuple[messages_pb2.Graph, str]:
        """The graph with its JSON, as far as it is there and not seen, and the mark of what is seen now."""
        record = await asyncio.to_thread(self._graphs.request, graph_id)
        document = await asyncio.to_thread(self._graphs.finished, record)
        if document is not None:
            return await self._finished(record, self._operations.name(graph_id), document, with_json=True), seen
        graph = await self._unfinished(record)
        if graph.state == messages_pb2.GRAPH_STATE_RUNNING:
            partial = await asyncio.to_thread(self._graphs.partial, record, seen)
            if partial is not None:
                shown, seen = partial
                await asyncio.to_thread(converting.show_partial, graph, shown)
        return graph, seen

    async def _summarised(self, record: GraphRequest) -> messages_pb2.Graph:
        """The graph without its JSON."""
        summary = await asyncio.to_thread(self._graphs.summary, record)
        if summary is None:
            return await self._unfinished(record)
        return await self._finished(record, self._operations.name(record.graph_id), summary, with_json=False)

    async def _unfinished(self, record: GraphRequest) -> messages_pb2.Graph:
        name = self._operations.name(record.graph_id)
        graph = converting.graph_to_proto(record, name)
        try:
            operation = await self._operations.get(name)
        except NotFoundError:
            graph.state = messages_pb2.GRAPH_STATE_FAILED
            graph.error_message = "its work was never started; delete it and ask again"
            return graph
        if operation.done:
            cancelled = operation.error.code == code_pb2.CANCELLED
            graph.state = messages_pb2.GRAPH_STATE_CANCELLED if cancelled else messages_pb2.GRAPH_STATE_FAILED
            graph.error_message = operation.error.message
        return graph
