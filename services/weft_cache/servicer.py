"""weft.cache.v1.CacheService: from messages to the catalog and back; everything that blocks runs in a thread."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC
from typing import ParamSpec, TypeVar

import grpc.aio
from google.longrunning import operations_pb2

from weft.cache.v1 import messages_pb2, retention_pb2, service_pb2, service_pb2_grpc
from weft_cache import converting
from weft_cache.core.catalog import Catalog
from weft_cache.core.commits import Commits
from weft_cache.core.deletion import Deletion
from weft_cache.core.garbage import check_age
from weft_cache.core.holds import Hold, Holds
from weft_cache.core.reading import Reading
from weft_cache.core.records import Dataset
from weft_cache.core.sealing import Sealing
from weft_cache.core.snapshots import Snapshots
from weft_cache.work import COLLECT, VERIFY, start
from weft_common.errors import InvalidArgumentError, WeftError
from weft_common.operations import OperationManager
from weft_common.pages import paginate
from weft_common.resource_names import parse_name
from weft_common.tensors import chunk_tensor

P = ParamSpec("P")
R = TypeVar("R")
# Of one shard; two are taken at a time, each there twice for a moment.
_MAX_UPLOAD_BYTES = 128 << 20
_UPLOADS = 2
Context = grpc.aio.ServicerContext[object, object]


def _id(name: str, field: str) -> str:
    return parse_name(name, "datasets", field=field)


class CacheServicer(service_pb2_grpc.CacheServiceServicer):
    """Answers the catalog's RPCs."""

    def __init__(
        self,
        catalog: Catalog,
        commits: Commits,
        sealing: Sealing,
        snapshots: Snapshots,
        reading: Reading,
        holds: Holds,
        deletion: Deletion,
        operations: OperationManager,
        *,
        presign_s: int,
        answered: Callable[[str], None],
    ) -> None:
        self._catalog = catalog
        self._commits = commits
        self._sealing = sealing
        self._snapshots = snapshots
        self._reading = reading
        self._holds = holds
        self._deletion = deletion
        self._operations = operations
        self._uploads = asyncio.Semaphore(_UPLOADS)
        self._presign_s = presign_s
        self._answered = answered

    async def CreateDataset(self, request: service_pb2.CreateDatasetRequest, context: Context) -> messages_pb2.Dataset:
        spec = converting.spec_from_proto(request.spec)
        return await self._answer(lambda: self._described(self._catalog.create(request.dataset_id, spec)))

    async def GetDataset(self, request: service_pb2.GetDatasetRequest, context: Context) -> messages_pb2.Dataset:
        dataset_id, number = _id(request.name, "name"), request.snapshot
        return await self._answer(
            lambda: self._described(
                self._snapshots.get(dataset_id, number) if number else self._catalog.get(dataset_id)
            )
        )

    async def ListDatasets(
        self, request: service_pb2.ListDatasetsRequest, context: Context
    ) -> service_pb2.ListDatasetsResponse:
        wanted = converting.filter_from_proto(request.filter)
        datasets, token = await self._answer(self._catalog.list, request.page_size, request.page_token, wanted)
        return service_pb2.ListDatasetsResponse(
            datasets=[converting.dataset_to_proto(each, [], shards=False) for each in datasets], next_page_token=token
        )

    async def BeginShard(self, request: service_pb2.BeginShardRequest, context: Context) -> messages_pb2.ShardUpload:
        dataset_id = _id(request.dataset, "dataset")
        return converting.upload_to_proto(await self._answer(self._commits.begin, dataset_id, request.shard_index))

    async def UploadShard(
        self, request_iterator: AsyncIterator[service_pb2.UploadShardRequest], context: Context
    ) -> messages_pb2.ShardUpload:
        dataset_id, index, data = "", 0, bytearray()
        async with self._uploads:
            async for piece in request_iterator:
                if not dataset_id:
                    dataset_id, index = _id(piece.dataset, "dataset"), piece.shard_index
                if len(data) + len(piece.data) > _MAX_UPLOAD_BYTES:
                    raise InvalidArgumentError(
                        f"shard {index} of datasets/{dataset_id} has more than {_MAX_UPLOAD_BYTES} bytes: make smaller "
                        "shards, or put it where BeginShard says",
                        field="data",
                    )
                data += piece.data
            return converting.upload_to_proto(await self._answer(self._commits.put, dataset_id, index, bytes(data)))

    async def CommitShard(self, request: service_pb2.CommitShardRequest, context: Context) -> messages_pb2.Shard:
        dataset_id = _id(request.dataset, "dataset")
        shard = converting.shard_from_proto(request.shard)
        statistics = converting.statistics_from_proto(request.shard)
        return converting.shard_to_proto(await self._answer(self._commits.commit, dataset_id, shard, statistics))

    async def SnapshotDataset(
        self, request: service_pb2.SnapshotDatasetRequest, context: Context
    ) -> messages_pb2.Dataset:
        dataset_id = _id(request.name, "name")
        return await self._answer(lambda: self._described(self._snapshots.take(dataset_id)))

    async def SealDataset(self, request: service_pb2.SealDatasetRequest, context: Context) -> messages_pb2.Dataset:
        dataset_id = _id(request.name, "name")
        return await self._answer(lambda: self._described(self._sealing.seal(dataset_id, request.num_shards)))

    async def PlanReads(self, request: service_pb2.PlanReadsRequest, context: Context) -> service_pb2.PlanReadsResponse:
        return await self._answer(self._plan, request)

    def _plan(self, request: service_pb2.PlanReadsRequest) -> service_pb2.PlanReadsResponse:
        made = request.dataset_create_time.ToDatetime(UTC) if request.HasField("dataset_create_time") else None
        plan = self._reading.plan(
            _id(request.dataset, "dataset"),
            converting.split_from_proto(request.split, field="split"),
            rank=request.rank,
            world_size=request.world_size,
            epoch=request.epoch,
            seed=request.seed,
            snapshot=request.snapshot,
            since_snapshot=request.since_snapshot,
            create_time=made,
        )
        if not 0 <= request.start_position <= len(plan.slices):
            raise InvalidArgumentError(
                f"start_position is {request.start_position}, expected 0 to {len(plan.slices)}, the slices of this "
                "share; resume with the seed, epoch and world_size that the position came from",
                field="start_position",
            )
        if request.max_slices < 0:
            raise InvalidArgumentError(
                f"max_slices is {request.max_slices}, expected 0 for all, or more", field="max_slices"
            )
        urls: dict[str, str] = {}
        if request.presign:
            for key in {piece.shard.key for piece in plan.slices[request.start_position :]}:
                urls[key] = self._catalog.store.presign_get(key, self._presign_s)
        return converting.plan_to_proto(plan, start=request.start_position, most=request.max_slices, urls=urls)

    async def ReadShard(
        self, request: service_pb2.ReadShardRequest, context: Context
    ) -> AsyncIterator[service_pb2.ReadShardResponse]:
        dataset_id = _id(request.dataset, "dataset")
        shard, blocks = await self._answer(
            self._reading.blocks, dataset_id, request.shard_index, request.layer, list(request.row_groups)
        )
        for block in blocks:
            rows = await asyncio.to_thread(self._reading.read, shard, request.layer, block)
            for chunk in chunk_tensor(f"{block.stream}/{block.row_group}", rows):
                yield service_pb2.ReadShardResponse(chunk=chunk)

    async def VerifyDataset(
        self, request: service_pb2.VerifyDatasetRequest, context: Context
    ) -> service_pb2.VerifyDatasetResponse:
        found = await self._answer(self._reading.verify, _id(request.name, "name"))
        return converting.verification_to_proto(found)

    async def DeleteDataset(
        self, request: service_pb2.DeleteDatasetRequest, context: Context
    ) -> service_pb2.DeleteDatasetResponse:
        await self._answer(self._deletion.delete, _id(request.name, "name"))
        return service_pb2.DeleteDatasetResponse()

    async def GetStats(self, request: service_pb2.GetStatsRequest, context: Context) -> service_pb2.GetStatsResponse:
        compression = await self._answer(self._reading.compression, _id(request.name, "name"))
        return converting.compression_to_proto(compression)

    async def UpdateDataset(self, request: service_pb2.UpdateDatasetRequest, context: Context) -> messages_pb2.Dataset:
        dataset_id, put, remove = _id(request.name, "name"), dict(request.set_tags), list(request.remove_tags)
        rules = converting.retention_from_proto(request.retention) if request.HasField("retention") else None
        return await self._answer(lambda: self._described(self._catalog.update(dataset_id, put, remove, rules)))

    async def HoldDataset(self, request: retention_pb2.HoldDatasetRequest, context: Context) -> retention_pb2.Hold:
        dataset_id = _id(request.name, "name")
        return converting.hold_to_proto(await self._answer(self._holds.hold, dataset_id, request.holder))

    async def ReleaseDataset(
        self, request: retention_pb2.ReleaseDatasetRequest, context: Context
    ) -> retention_pb2.ReleaseDatasetResponse:
        await self._answer(self._holds.release, _id(request.name, "name"), request.holder)
        return retention_pb2.ReleaseDatasetResponse()

    async def ListHolds(
        self, request: retention_pb2.ListHoldsRequest, context: Context
    ) -> retention_pb2.ListHoldsResponse:
        dataset_id = _id(request.name, "name")

        def page() -> tuple[list[Hold], str]:
            live = self._holds.live(dataset_id, self._catalog.manifest(dataset_id)["create_time"])
            return paginate(live, request.page_size, request.page_token, lambda hold: hold.holder)

        holds, token = await self._answer(page)
        return retention_pb2.ListHoldsResponse(
            holds=[converting.hold_to_proto(each) for each in holds], next_page_token=token
        )

    async def StartVerification(
        self, request: retention_pb2.StartVerificationRequest, context: Context
    ) -> operations_pb2.Operation:
        await self._answer(self._catalog.manifest, _id(request.name, "name"))
        return await start(self._operations, VERIFY, request)

    async def CollectGarbage(
        self, request: retention_pb2.CollectGarbageRequest, context: Context
    ) -> operations_pb2.Operation:
        check_age(request.min_age_s)
        return await start(self._operations, COLLECT, request)

    def _described(self, dataset: Dataset) -> messages_pb2.Dataset:
        of = self._snapshots.statistics if dataset.snapshot else self._sealing.train_statistics
        return converting.dataset_to_proto(dataset, of(dataset), shards=True)

    async def _answer(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Do the work in a thread, and count how it ended."""
        try:
            result = await asyncio.to_thread(work, *args, **kwargs)
        except WeftError as error:
            self._answered(error.code.name)
            raise
        self._answered("OK")
        return result
