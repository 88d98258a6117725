"""The catalog of datasets over gRPC: the `DatasetCatalog` that weft.cache.v1 serves."""

from collections.abc import Awaitable, Sequence
from typing import TypeVar

import grpc
import grpc.aio

from weft.cache.v1 import messages_pb2, service_pb2, service_pb2_grpc
from weft_activations.core.ports import CommittedShard, DatasetSpec, DatasetState, Split, UploadTarget
from weft_common.client import error_from_rpc
from weft_common.errors import NotFoundError
from weft_store.shard import LayerStatistics, StreamStatistics

__all__ = ["GrpcCatalog"]

T = TypeVar("T")
# Committing reads the whole shard on the other side.
_TIMEOUT_S = 120.0
_SPLITS = {Split.TRAIN: messages_pb2.SPLIT_TRAIN, Split.HELD_OUT: messages_pb2.SPLIT_HELD_OUT}
_SPLITS_BACK = {number: split for split, number in _SPLITS.items()}
_STATES = {
    messages_pb2.DATASET_STATE_OPEN: DatasetState.OPEN,
    messages_pb2.DATASET_STATE_SEALED: DatasetState.SEALED,
}
_SPEC_FIELDS = tuple(field.name for field in messages_pb2.DatasetSpec.DESCRIPTOR.fields)
_STREAM_FIELDS = tuple(field.name for field in messages_pb2.StreamStatistics.DESCRIPTOR.fields if field.name != "mean")


class GrpcCatalog:
    """
    Speaks to the cache service.

    Args:
        channel: To it, with its token.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = service_pb2_grpc.CacheServiceStub(channel)

    async def create_dataset(self, dataset_id: str, spec: DatasetSpec) -> DatasetState:
        """Create a dataset, or find it with the same spec."""
        message = messages_pb2.DatasetSpec(**{name: getattr(spec, name) for name in _SPEC_FIELDS})
        request = service_pb2.CreateDatasetRequest(dataset_id=dataset_id, spec=message)
        dataset = await _answer(self._stub.CreateDataset(request, timeout=_TIMEOUT_S))
        return _STATES[dataset.state]

    async def find_dataset(self, dataset_id: str) -> tuple[DatasetSpec, DatasetState] | None:
        """Describe a dataset; None where there is none."""
        request = service_pb2.GetDatasetRequest(name=f"datasets/{dataset_id}")
        try:
            dataset = await _answer(self._stub.GetDataset(request, timeout=_TIMEOUT_S))
        except NotFoundError:
            return None
        return DatasetSpec(**{name: getattr(dataset.spec, name) for name in _SPEC_FIELDS}), _STATES[dataset.state]

    async def begin_shard(self, dataset_id: str, index: int) -> UploadTarget:
        """Ask where a shard goes."""
        request = service_pb2.BeginShardRequest(dataset=f"datasets/{dataset_id}", shard_index=index)
        upload = await _answer(self._stub.BeginShard(request, timeout=_TIMEOUT_S))
        committed = _shard_from_proto(upload.committed) if upload.HasField("committed") else None
        return UploadTarget(upload.key, upload.url, committed)

    async def commit_shard(self, dataset_id: str, shard: CommittedShard) -> CommittedShard:
        """Add a shard; the first of an index is returned."""
        request = service_pb2.CommitShardRequest(dataset=f"datasets/{dataset_id}", shard=_shard_to_proto(shard))
        return _shard_from_proto(await _answer(self._stub.CommitShard(request, timeout=_TIMEOUT_S)))

    async def seal_dataset(self, dataset_id: str, num_shards: int) -> None:
        """Make a dataset immutable."""
        request = service_pb2.SealDatasetRequest(name=f"datasets/{dataset_id}", num_shards=num_shards)
        await _answer(self._stub.SealDataset(request, timeout=_TIMEOUT_S))


async def _answer(call: Awaitable[T]) -> T:
    try:
        return await call
    except grpc.RpcError as exc:
        raise error_from_rpc(exc) from exc


def _shard_to_proto(shard: CommittedShard) -> messages_pb2.Shard:
    return messages_pb2.Shard(
        index=shard.index,
        key=shard.key,
        sha256=shard.sha256,
        size_bytes=shard.size_bytes,
        num_tokens=shard.num_tokens,
        split=_SPLITS[shard.split],
        row_group_tokens=shard.row_group_tokens,
        statistics=[
            messages_pb2.LayerStatistics(
                layer=each.layer, input=_stream_to_proto(each.input), output=_stream_to_proto(each.output)
            )
            for each in shard.statistics
        ],
    )


def _stream_to_proto(stream: StreamStatistics) -> messages_pb2.StreamStatistics:
    return messages_pb2.StreamStatistics(mean=stream.mean, **{name: getattr(stream, name) for name in _STREAM_FIELDS})


def _shard_from_proto(shard: messages_pb2.Shard) -> CommittedShard:
    statistics: Sequence[LayerStatistics] = [
        LayerStatistics(each.layer, _stream_from_proto(each.input), _stream_from_proto(each.output))
        for each in shard.statistics
    ]
    return CommittedShard(
        index=shard.index,
        key=shard.key,
        sha256=shard.sha256,
        size_bytes=shard.size_bytes,
        num_tokens=shard.num_tokens,
        split=_SPLITS_BACK[shard.split],
        row_group_tokens=shard.row_group_tokens,
        statistics=statistics,
    )


def _stream_from_proto(stream: messages_pb2.StreamStatistics) -> StreamStatistics:
    return StreamStatistics(mean=tuple(stream.mean), **{name: getattr(stream, name) for name in _STREAM_FIELDS})
