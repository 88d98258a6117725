"""Between weft.cache.v1 messages and the catalog's records."""

from dataclasses import fields
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from weft.cache.v1 import filter_pb2, messages_pb2, retention_pb2, service_pb2
from weft_cache.core.commits import Upload
from weft_cache.core.filtering import DatasetFilter
from weft_cache.core.garbage import Collection
from weft_cache.core.holds import Hold
from weft_cache.core.planning import Plan, Slice
from weft_cache.core.reading import Compression, Verification
from weft_cache.core.records import Dataset, DatasetSpec, ShardRecord, Split, State
from weft_cache.core.retention import Retention
from weft_common.errors import InvalidArgumentError
from weft_store.shard import LayerStatistics, StreamStatistics

_SPLITS = {messages_pb2.SPLIT_TRAIN: Split.TRAIN, messages_pb2.SPLIT_HELD_OUT: Split.HELD_OUT}
_SPLITS_OUT = {split: number for number, split in _SPLITS.items()}
_STATES_OUT = {State.OPEN: messages_pb2.DATASET_STATE_OPEN, State.SEALED: messages_pb2.DATASET_STATE_SEALED}


def split_from_proto(split: messages_pb2.Split.ValueType, *, field: str) -> Split:
    """Which split was meant; there is no default."""
    if split not in _SPLITS:
        raise InvalidArgumentError(f"{field} is not set; give SPLIT_TRAIN or SPLIT_HELD_OUT", field=field)
    return _SPLITS[split]


def spec_from_proto(spec: messages_pb2.DatasetSpec) -> DatasetSpec:
    """The spec as it was asked for, unchecked."""
    return DatasetSpec(**{field.name: getattr(spec, field.name) for field in fields(DatasetSpec)})


def filter_from_proto(wanted: filter_pb2.DatasetFilter) -> DatasetFilter:
    """Which datasets are wanted, unchecked."""
    states = {number: state for state, number in _STATES_OUT.items()}
    return DatasetFilter(
        state=states.get(wanted.state),
        model=wanted.model,
        codec=wanted.codec,
        tags=dict(wanted.tags),
        created_from=wanted.created_from.ToDatetime(UTC) if wanted.HasField("created_from") else None,
        created_before=wanted.created_before.ToDatetime(UTC) if wanted.HasField("created_before") else None,
    )


def retention_from_proto(rules: retention_pb2.Retention) -> Retention:
    """Rules as they were asked for, unchecked."""
    return Retention(**{each.name: getattr(rules, each.name) for each in fields(Retention)})


def hold_to_proto(hold: Hold) -> retention_pb2.Hold:
    """A hold, for its reader."""
    return retention_pb2.Hold(holder=hold.holder, create_time=_timestamp(hold.create_time))


def verification_to_proto(found: Verification) -> service_pb2.VerifyDatasetResponse:
    """The outcome of a check."""
    return service_pb2.VerifyDatasetResponse(
        num_shards=found.num_shards, size_bytes=found.size_bytes, problems=found.problems
    )


def collection_to_proto(found: Collection) -> retention_pb2.CollectGarbageResponse:
    """What a collection of garbage found."""
    return retention_pb2.CollectGarbageResponse(
        deleted=found.deleted,
        expired=[f"datasets/{each}" for each in found.expired],
        held=[
            retention_pb2.HeldDataset(name=f"datasets/{each}", holders=holders) for each, holders in found.held.items()
        ],
        num_uploads=found.num_uploads,
        upload_bytes=found.upload_bytes,
        num_leftovers=found.num_leftovers,
        problems=found.problems,
    )


def shard_from_proto(shard: messages_pb2.Shard) -> ShardRecord:
    """A shard as it was announced, unchecked but for its split."""
    return ShardRecord(
        index=shard.index,
        key=shard.key,
        sha256=shard.sha256,
        size_bytes=shard.size_bytes,
        num_tokens=shard.num_tokens,
        split=split_from_proto(shard.split, field="shard.split"),
        row_group_tokens=shard.row_group_tokens,
    )


def statistics_from_proto(shard: messages_pb2.Shard) -> list[LayerStatistics]:
    """The statistics that came with a shard, unchecked."""
    return [
        LayerStatistics(layer=each.layer, input=_stream_from_proto(each.input), output=_stream_from_proto(each.output))
        for each in shard.statistics
    ]


def _stream_from_proto(stream: messages_pb2.StreamStatistics) -> StreamStatistics:
    values = {field.name: getattr(stream, field.name) for field in fields(StreamStatistics)}
    return StreamStatistics(**{**values, "mean": tuple(stream.mean)})


def upload_to_proto(upload: Upload) -> messages_pb2.ShardUpload:
    """Where a shard goes, or the one that is committed already."""
    committed = shard_to_proto(upload.committed) if upload.committed else None
    return messages_pb2.ShardUpload(key=upload.key, url=upload.url, committed=committed)


def shard_to_proto(shard: ShardRecord) -> messages_pb2.Shard:
    """A committed shard, without statistics."""
    return messages_pb2.Shard(
        index=shard.index,
        key=shard.key,
        sha256=shard.sha256,
        size_bytes=shard.size_bytes,
        num_tokens=shard.num_tokens,
        split=_SPLITS_OUT[shard.split],
        row_group_tokens=shard.row_group_tokens,
    )


def dataset_to_proto(dataset: Dataset, statistics: list[LayerStatistics], *, shards: bool) -> messages_pb2.Dataset:
    """A dataset, with or without the list of its shards."""
    return messages_pb2.Dataset(
        name=dataset.name,
        spec=messages_pb2.DatasetSpec(
            **{field.name: getattr(dataset.spec, field.name) for field in fields(DatasetSpec)}
        ),
        state=_STATES_OUT[dataset.state],
        shards=[shard_to_proto(shard) for shard in dataset.shards] if shards else (),
        num_train_tokens=dataset.num_tokens(Split.TRAIN),
        num_held_out_tokens=dataset.num_tokens(Split.HELD_OUT),
        size_bytes=dataset.size_bytes,
        statistics=[_layer_to_proto(layer) for layer in statistics],
        create_time=_timestamp(dataset.create_time),
        seal_time=_timestamp(dataset.seal_time) if dataset.seal_time else None,
        snapshot=dataset.snapshot,
        tags=dataset.tags,
        retention=(
            retention_pb2.Retention(**{each.name: getattr(dataset.retention, each.name) for each in fields(Retention)})
            if dataset.retention != Retention()
            else None
        ),
    )


def _layer_to_proto(layer: LayerStatistics) -> messages_pb2.LayerStatistics:
    streams = {
        name: messages_pb2.StreamStatistics(
            **{field.name: getattr(getattr(layer, name), field.name) for field in fields(StreamStatistics)}
        )
        for name in ("input", "output")
    }
    return messages_pb2.LayerStatistics(layer=layer.layer, **streams)


def plan_to_proto(plan: Plan, *, start: int, most: int, urls: dict[str, str]) -> service_pb2.PlanReadsResponse:
    """A page of a plan, from a position on."""
    end = start + most if most else None
    return service_pb2.PlanReadsResponse(
        slices=[_slice_to_proto(piece, urls) for piece in plan.slices[start:end]],
        num_tokens=plan.num_tokens,
        num_slices=len(plan.slices),
    )


def _slice_to_proto(piece: Slice, urls: dict[str, str]) -> messages_pb2.ReadSlice:
    return messages_pb2.ReadSlice(
        position=piece.position,
        shard_index=piece.shard.index,
        key=piece.shard.key,
        sha256=piece.shard.sha256,
        row_group=piece.row_group,
        num_tokens=piece.num_tokens,
        seed=piece.seed,
        url=urls.get(piece.shard.key, ""),
    )


def compression_to_proto(compression: Compression) -> service_pb2.GetStatsResponse:
    """Compression figures."""
    return service_pb2.GetStatsResponse(
        stats=[
            service_pb2.CompressionStats(
                layer=each.layer,
                stream=each.stream,
                bits_per_value=each.bits_per_value,
                entropy_bits=each.entropy_bits,
                fvu=each.fvu,
            )
            for each in compression.streams
        ],
        bits_per_value=compression.bits_per_value,
        bytes_per_token=compression.bytes_per_token,
        fvu_max=compression.fvu_max,
    )


def _timestamp(time: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp
