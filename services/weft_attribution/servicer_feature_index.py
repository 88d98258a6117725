# ruff: noqa: N802  gRPC names the methods
"""The RPCs of FeatureService on indexes, and the long work behind them."""

import asyncio
import time
from contextlib import suppress

import grpc.aio
from google.longrunning import operations_pb2
from google.protobuf.message import Message

from weft.common.v1 import operation_pb2
from weft.features.v1 import index_pb2, service_pb2_grpc
from weft_attribution import converting_features as converting
from weft_attribution.core.dataset_holding import DatasetHolding
from weft_attribution.core.feature_index.indexing import FeatureIndexing
from weft_attribution.core.feature_index.open_indexes import OpenIndexes
from weft_attribution.core.feature_index.settings import IndexRequest
from weft_attribution.timestamps import timestamp
from weft_common.errors import FailedPreconditionError, NotFoundError
from weft_common.operations import OperationContext, OperationKind, OperationManager
from weft_common.pages import newest_first, paginate
from weft_common.resource_names import parse_child_name, parse_name

__all__ = ["INDEX", "IndexRpcs", "IndexWork"]

Context = grpc.aio.ServicerContext[object, object]
INDEX = "feature-index"
_REPORT_EVERY_S = 0.3


def _metadata(
    request: IndexRequest, create_s: float, done: int, total: int, stage: str = "indexing"
) -> index_pb2.FeatureIndexMetadata:
    return index_pb2.FeatureIndexMetadata(
        index=converting.index_name(request.transcoder, request.index_id),
        progress=operation_pb2.Progress(
            stage=stage,
            completed=done,
            total=total,
            unit="tokens of a layer",
            create_time=timestamp(create_s),
            update_time=timestamp(time.time()),
        ),
    )


class IndexWork:
    """
    The long work behind IndexFeatures.

    Args:
        indexing: The domain.
        holding: Keeps datasets from being deleted meanwhile.
    """

    def __init__(self, indexing: FeatureIndexing, holding: DatasetHolding) -> None:
        self._indexing, self._holding = indexing, holding

    def kind(self) -> OperationKind:
        """Of all replicas, and one at a time in each: it takes what memory and processors there are."""
        return OperationKind(self._build, shared=True, max_running=1)

    async def _build(self, context: OperationContext) -> Message:
        asked = context.request
        assert isinstance(asked, index_pb2.IndexFeaturesRequest)
        request, told = converting.index_request_from_proto(asked), context.metadata
        # Replicas that make it together tell one time at which it was asked for.
        assert isinstance(told, index_pb2.FeatureIndexMetadata)
        begun = told.progress.create_time.ToMicroseconds() / 1e6
        latest = reported = told.progress.completed, told.progress.total
        await context.report(_metadata(request, begun, *reported))
        await self._holding.hold(request.dataset, context.name)

        def progress(done: int, total: int) -> None:
            nonlocal latest
            latest = done, total

        task = asyncio.ensure_future(self._indexing.build(request, progress))
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=_REPORT_EVERY_S)
                if latest != reported:
                    reported = latest
                    await context.report(_metadata(request, begun, *reported))
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait({task})
            raise
        return converting.index_to_proto(task.result())


class IndexRpcs(service_pb2_grpc.FeatureServiceServicer):
    """Starts and describes indexes, by the domains put into these attributes; long work goes to `work`."""

    indexing: FeatureIndexing
    holding: DatasetHolding
    indexes: OpenIndexes
    work: OperationManager

    async def IndexFeatures(
        self, request: index_pb2.IndexFeaturesRequest, context: Context
    ) -> operations_pb2.Operation:
        wanted = converting.index_request_from_proto(request)
        total = await self.indexing.check(wanted)
        if request.validate_only:
            return operations_pb2.Operation(name=self.work.name(wanted.operation_id))
        name = self.work.name(wanted.operation_id)
        # Asked for again after it failed or was cancelled, it goes on from what is stored.
        with suppress(NotFoundError, FailedPreconditionError):
            if (await self.work.get(name)).HasField("error"):
                await self.work.delete(name)
        operation = await self.work.start(
            INDEX,
            wanted.operation_id,
            converting.index_request_to_proto(wanted),
            _metadata(wanted, time.time(), 0, total, "waiting"),
        )
        if not operation.done:
            await self.holding.hold_waiting(wanted.dataset, name)
        return operation

    async def GetFeatureIndex(
        self, request: index_pb2.GetFeatureIndexRequest, context: Context
    ) -> index_pb2.FeatureIndex:
        transcoder, index_id = parse_child_name(request.name, "transcoders", "indexes")
        return converting.index_to_proto(await asyncio.to_thread(self.indexes.manifest, transcoder, index_id))

    async def ListFeatureIndexes(
        self, request: index_pb2.ListFeatureIndexesRequest, context: Context
    ) -> index_pb2.ListFeatureIndexesResponse:
        transcoder = parse_name(request.parent, "transcoders", field="parent")
        page, next_token = paginate(
            await asyncio.to_thread(self.indexes.manifests, transcoder),
            request.page_size,
            request.page_token,
            key=lambda each: newest_first(each["create_s"], each["request"]["index_id"]),
        )
        return index_pb2.ListFeatureIndexesResponse(
            indexes=[converting.index_to_proto(each) for each in page], next_page_token=next_token
        )
