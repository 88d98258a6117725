# Generated from `weft_client/aio` by `scripts/client_sync.py`; edit that.
"""Datasets: what was harvested, how it is compressed, its rows."""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import grpc
import numpy.typing as npt
from google.longrunning import operations_pb2

from weft.cache.v1 import filter_pb2, messages_pb2, retention_pb2, service_pb2, service_pb2_grpc
from weft_client.names import full_name
from weft_client.sync.calls import pages, stream, unary
from weft_client.sync.connection import Connection
from weft_common.client import error_from_rpc
from weft_common.tensors import TensorAssembler

MAX_BLOCK_BYTES = 1 << 30
_PIECE_BYTES = 1 << 20


class Datasets:
    """Datasets in the cache's catalog; a harvest makes them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def _stub(self) -> "service_pb2_grpc.CacheServiceStub":
        return service_pb2_grpc.CacheServiceStub(self._connection.channel("cache"))

    def get(self, name: str, *, snapshot: int = 0) -> messages_pb2.Dataset:
        """Describe one dataset with its shards and, once sealed, its statistics; or one of its snapshots."""
        request = service_pb2.GetDatasetRequest(name=full_name("datasets", name), snapshot=snapshot)
        return unary(self._stub.GetDataset, request)

    def snapshot(self, name: str, *, timeout_s: float | None = None) -> messages_pb2.Dataset:
        """Number what is committed to an open dataset by now, and describe it; a sealed one is described as it is."""
        request = service_pb2.SnapshotDatasetRequest(name=full_name("datasets", name))
        return unary(self._stub.SnapshotDataset, request, timeout_s=timeout_s)

    def list(
        self,
        *,
        state: messages_pb2.DatasetState.ValueType = messages_pb2.DATASET_STATE_UNSPECIFIED,
        model: str = "",
        codec: str = "",
        tags: Mapping[str, str] | None = None,
        created_from: datetime | None = None,
        created_before: datetime | None = None,
    ) -> Iterator[messages_pb2.Dataset]:
        """
        Datasets, newest first, without shards and statistics; all of them, or those for which all that is given holds.

        Args:
            state: Open or sealed.
            model: Of this model.
            codec: `bf16` or `uniform`.
            tags: With all of these, of these very values.
            created_from: Created then or later; with a time zone.
            created_before: Created earlier; with a time zone.
        """
        wanted = filter_pb2.DatasetFilter(
            state=state, model=full_name("models", model) if model else "", codec=codec, tags=tags or {}
        )
        for name, moment in (("created_from", created_from), ("created_before", created_before)):
            if moment is not None:
                getattr(wanted, name).FromDatetime(moment)
        request = service_pb2.ListDatasetsRequest(filter=wanted)
        return pages(self._stub.ListDatasets, request, lambda page: page.datasets)

    def tag(self, name: str, tags: Mapping[str, str], *, remove: Sequence[str] = ()) -> messages_pb2.Dataset:
        """Set tags of a dataset, and take others away by their keys; all others stay."""
        request = service_pb2.UpdateDatasetRequest(
            name=full_name("datasets", name), set_tags=dict(tags), remove_tags=remove
        )
        return unary(self._stub.UpdateDataset, request)

    def create(self, dataset_id: str, spec: messages_pb2.DatasetSpec) -> messages_pb2.Dataset:
        """Create an open dataset by hand; a harvest does this itself. The same spec again is success."""
        return unary(self._stub.CreateDataset, service_pb2.CreateDatasetRequest(dataset_id=dataset_id, spec=spec))

    def begin_shard(self, dataset: str, shard_index: int) -> messages_pb2.ShardUpload:
        """Where a shard goes, or the one that is committed under this index."""
        request = service_pb2.BeginShardRequest(dataset=full_name("datasets", dataset), shard_index=shard_index)
        return unary(self._stub.BeginShard, request)

    def upload_shard(self, dataset: str, shard_index: int, data: bytes) -> messages_pb2.ShardUpload:
        """Store a shard's bytes through the service, 128 MiB at most; `commit_shard` makes them count."""
        try:
            return self._stub.UploadShard(_pieces(full_name("datasets", dataset), shard_index, data))
        except grpc.RpcError as error:
            raise error_from_rpc(error) from error

    def commit_shard(self, dataset: str, shard: messages_pb2.Shard) -> messages_pb2.Shard:
        """Add a shard that lies in the bucket; the first of an index wins, and every later call gets that one."""
        request = service_pb2.CommitShardRequest(dataset=full_name("datasets", dataset), shard=shard)
        return unary(self._stub.CommitShard, request)

    def seal(self, name: str, num_shards: int) -> messages_pb2.Dataset:
        """Make a dataset immutable; it must have exactly these shards, from 0 on."""
        request = service_pb2.SealDatasetRequest(name=full_name("datasets", name), num_shards=num_shards)
        return unary(self._stub.SealDataset, request)

    def stats(self, name: str) -> service_pb2.GetStatsResponse:
        """Sum up compression by layer and stream."""
        return unary(self._stub.GetStats, service_pb2.GetStatsRequest(name=full_name("datasets", name)))

    def verify(self, name: str, *, timeout_s: float | None = None) -> service_pb2.VerifyDatasetResponse:
        """Read every byte in the bucket and compare it with the catalog; look at `problems`."""
        request = service_pb2.VerifyDatasetRequest(name=full_name("datasets", name))
        return unary(self._stub.VerifyDataset, request, timeout_s=timeout_s)

    def start_verification(self, name: str, *, request_id: str = "") -> operations_pb2.Operation:
        """Have every byte read and compared, as long work; `operations.wait` gives a VerifyDatasetResponse."""
        request = retention_pb2.StartVerificationRequest(
            name=full_name("datasets", name), request_id=request_id or str(uuid.uuid4())
        )
        return unary(self._stub.StartVerification, request)

    def keep(self, name: str, *, days: int = 0, last: int = 0, last_tag: str = "") -> messages_pb2.Dataset:
        """
        Say for how long a dataset is kept, in place of what was said before; without any rule it is kept for ever.

        Args:
            name: Which one.
            days: Days since it was sealed, or, while it is open, since it last took a shard.
            last: It is kept while fewer sealed datasets than this are newer, of those with the same value of a tag.
            last_tag: Key of that tag.
        """
        rules = retention_pb2.Retention(keep_days=days, keep_last=last, keep_last_tag=last_tag)
        request = service_pb2.UpdateDatasetRequest(name=full_name("datasets", name), retention=rules)
        return unary(self._stub.UpdateDataset, request)

    def hold(self, name: str, pin: str) -> retention_pb2.Hold:
        """Keep a dataset from being deleted until the pin is released; runs and indexes hold theirs by themselves."""
        request = retention_pb2.HoldDatasetRequest(name=full_name("datasets", name), holder=full_name("pins", pin))
        return unary(self._stub.HoldDataset, request)

    def release(self, name: str, pin: str) -> None:
        """Give up a pin; one that is not there is no error."""
        request = retention_pb2.ReleaseDatasetRequest(name=full_name("datasets", name), holder=full_name("pins", pin))
        unary(self._stub.ReleaseDataset, request)

    def holds(self, name: str) -> Iterator[retention_pb2.Hold]:
        """Who holds a dataset, by holder: runs and operations that have not ended, and pins."""
        request = retention_pb2.ListHoldsRequest(name=full_name("datasets", name))
        return pages(self._stub.ListHolds, request, lambda page: page.holds)

    def collect_garbage(
        self, *, delete: bool = False, min_age_s: int = 0, request_id: str = ""
    ) -> operations_pb2.Operation:
        """
        Find what nobody needs any more, as long work; `operations.wait` gives a CollectGarbageResponse.

        Args:
            delete: Delete it too.
            min_age_s: Age in seconds from which an upload that was never committed counts; 0 means a day.
            request_id: A UUID of your own, to repeat this very request.
        """
        request = retention_pb2.CollectGarbageRequest(
            delete=delete, min_age_s=min_age_s, request_id=request_id or str(uuid.uuid4())
        )
        return unary(self._stub.CollectGarbage, request)

    def delete(self, name: str, *, timeout_s: float | None = None) -> None:
        """Delete a dataset and its shards, unless somebody holds it."""
        request = service_pb2.DeleteDatasetRequest(name=full_name("datasets", name))
        unary(self._stub.DeleteDataset, request, timeout_s=timeout_s)

    def plan(
        self,
        dataset: str,
        split: messages_pb2.Split.ValueType,
        *,
        rank: int = 0,
        world_size: int = 1,
        epoch: int = 0,
        seed: int = 0,
        start_position: int = 0,
        max_slices: int = 0,
        presign: bool = False,
        snapshot: int = 0,
        since_snapshot: int = 0,
    ) -> service_pb2.PlanReadsResponse:
        """One reader's share of a split in one epoch, in reading order."""
        request = service_pb2.PlanReadsRequest(
            dataset=full_name("datasets", dataset),
            split=split,
            rank=rank,
            world_size=world_size,
            epoch=epoch,
            seed=seed,
            start_position=start_position,
            max_slices=max_slices,
            presign=presign,
            snapshot=snapshot,
            since_snapshot=since_snapshot,
        )
        return unary(self._stub.PlanReads, request)

    def read(
        self, dataset: str, *, shard_index: int, layer: int, row_groups: Sequence[int] = ()
    ) -> Iterator[tuple[str, int, npt.NDArray[Any]]]:
        """Decoded rows of one layer of a shard: (`input` or `output`, row group, float32 [num_tokens, d_model])."""
        request = service_pb2.ReadShardRequest(
            dataset=full_name("datasets", dataset), shard_index=shard_index, layer=layer, row_groups=row_groups
        )
        assembler = TensorAssembler(MAX_BLOCK_BYTES)
        for part in stream(self._stub.ReadShard, request, service_pb2.ReadShardResponse):
            if (done := assembler.add(part.chunk)) is not None:
                name, _, row_group = done[0].partition("/")
                yield name, int(row_group), done[1]
        assembler.finish()


def _pieces(dataset: str, shard_index: int, data: bytes) -> Iterator[service_pb2.UploadShardRequest]:
    for start in range(0, max(len(data), 1), _PIECE_BYTES):
        piece = service_pb2.UploadShardRequest(data=data[start : start + _PIECE_BYTES])
        if not start:
            piece.dataset, piece.shard_index = dataset, shard_index
        yield piece
