"""What is read of a dataset: plans and blocks for readers, everything for a check, sums for people."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt

from weft_cache.core.catalog import Catalog
from weft_cache.core.planning import Plan, plan_reads
from weft_cache.core.ports import Counters, Shards
from weft_cache.core.records import Dataset, ShardRecord, Split
from weft_cache.core.sealing import Sealing
from weft_cache.core.snapshots import Snapshots
from weft_common.errors import DataLossError, FailedPreconditionError, InvalidArgumentError
from weft_store.shard import STREAMS, Stream

MAX_WORLD_SIZE = 1 << 16


@dataclass(frozen=True, slots=True)
class Block:
    """What ReadShard sends: one stream of one row group at one layer."""

    stream: Stream
    row_group: int


@dataclass(frozen=True, slots=True)
class Verification:
    """The outcome of reading everything."""

    num_shards: int
    size_bytes: int
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StreamCompression:
    """Compression of one stream at one layer; the fields of weft.cache.v1.CompressionStats."""

    layer: int
    stream: str
    bits_per_value: float
    entropy_bits: float
    fvu: float


@dataclass(frozen=True, slots=True)
class Compression:
    """Compression of a dataset; the fields of weft.cache.v1.GetStatsResponse."""

    streams: tuple[StreamCompression, ...]
    bits_per_value: float
    bytes_per_token: float
    fvu_max: float


class Reading:
    """Plans, reads, verifies and sums up."""

    def __init__(
        self, catalog: Catalog, sealing: Sealing, snapshots: Snapshots, shards: Shards, counters: Counters
    ) -> None:
        self._catalog = catalog
        self._sealing = sealing
        self._snapshots = snapshots
        self._shards = shards
        self._counters = counters

    def plan(
        self,
        dataset_id: str,
        split: Split,
        *,
        rank: int,
        world_size: int,
        epoch: int,
        seed: int,
        snapshot: int = 0,
        since_snapshot: int = 0,
        create_time: datetime | None = None,
    ) -> Plan:
        """
        One rank's share of one epoch, over a snapshot where one is named, less an earlier one.

        Raises:
            FailedPreconditionError: the dataset is not sealed, and no snapshot is named; or it was not made at
                `create_time`, and so is another of this name.
            NotFoundError: no such dataset or snapshot.
        """
        if not 1 <= world_size <= MAX_WORLD_SIZE:
            raise InvalidArgumentError(
                f"world_size is {world_size}, expected 1 to {MAX_WORLD_SIZE}, the number of readers", field="world_size"
            )
        if not 0 <= rank < world_size:
            raise InvalidArgumentError(
                f"rank is {rank}, expected 0 to {world_size - 1} for world_size {world_size}", field="rank"
            )
        if epoch < 0:
            raise InvalidArgumentError(f"epoch is {epoch}, expected 0 or more", field="epoch")
        if create_time is not None:
            self._check_made(dataset_id, create_time)
        shards = self._snapshots.shards(dataset_id, snapshot, since_snapshot)
        return plan_reads(shards, split, rank=rank, world_size=world_size, epoch=epoch, seed=seed)

    def _check_made(self, dataset_id: str, create_time: datetime) -> None:
        made = self._catalog.manifest(dataset_id)["create_time"]
        if datetime.fromisoformat(made) != create_time:
            raise FailedPreconditionError(
                f"datasets/{dataset_id} was made at {made}, not at {create_time.isoformat()}: it was deleted and made "
                "anew since its reader began; begin anew with what it holds now",
                field="dataset_create_time",
            )

    def blocks(
        self, dataset_id: str, shard_index: int, layer: int, row_groups: Sequence[int]
    ) -> tuple[ShardRecord, list[Block]]:
        """The blocks that a request for rows means, input before output; all row groups where none are named."""
        dataset = self._catalog.get(dataset_id)
        shard = self._catalog.shard(dataset, shard_index)
        if not 0 <= layer < dataset.spec.num_layers:
            raise InvalidArgumentError(
                f"layer is {layer}, expected 0 to {dataset.spec.num_layers - 1} of {dataset.name}", field="layer"
            )
        wrong = [group for group in row_groups if not 0 <= group < shard.num_row_groups]
        if wrong:
            raise InvalidArgumentError(
                f"row_groups has {wrong[0]}, expected 0 to {shard.num_row_groups - 1} of shard {shard.index} of "
                f"{dataset.name}",
                field="row_groups",
            )
        wanted = row_groups or range(shard.num_row_groups)
        return shard, [Block(stream, group) for group in wanted for stream in STREAMS]

    def read(self, shard: ShardRecord, layer: int, block: Block) -> npt.NDArray[np.float32]:
        """
        Decode one block to [tokens, d_model].

        Raises:
            DataLossError: a checksum fails.
        """
        try:
            rows = self._shards.read(shard.key, block.stream, layer, block.row_group)
        except DataLossError:
            self._counters.corrupt()
            raise
        self._counters.moved("out", "read", rows.nbytes)
        return rows

    def verify(self, dataset_id: str, progress: Callable[[int, int], None] = lambda *_: None) -> Verification:
        """
        Read every byte of every shard and compare it with the catalog.

        Args:
            dataset_id: Which one.
            progress: Called with the bytes that were read and those there are; what it raises ends the check.
        """
        dataset = self._catalog.get(dataset_id)
        problems: list[str] = []
        read_bytes = 0
        for shard in dataset.shards:
            progress(read_bytes, dataset.size_bytes)
            read_bytes += shard.size_bytes
            try:
                self._shards.verify(shard.key, shard.sha256, shard.size_bytes)
            except DataLossError as error:
                self._counters.corrupt()
                problems.append(f"shard {shard.index}: {error.message}")
            else:
                self._counters.moved("in", "verify", shard.size_bytes)
        return Verification(len(dataset.shards), dataset.size_bytes, tuple(problems))

    def compression(self, dataset_id: str) -> Compression:
        """Sum up compression over both splits; all zero while there are no tokens."""
        dataset = self._catalog.get(dataset_id)
        streams = tuple(
            StreamCompression(
                layer=layer.layer,
                stream=name,
                bits_per_value=8 * each.size_bytes / (each.num_tokens * dataset.spec.d_model),
                entropy_bits=each.entropy_bits,
                fvu=each.fvu,
            )
            for layer in self._sealing.all_statistics(dataset)
            for name, each in (("input", layer.input), ("output", layer.output))
        )
        tokens = _num_tokens(dataset)
        values = 2 * tokens * dataset.spec.num_layers * dataset.spec.d_model
        return Compression(
            streams=streams,
            bits_per_value=8 * dataset.size_bytes / values if values else 0.0,
            bytes_per_token=dataset.size_bytes / tokens if tokens else 0.0,
            fvu_max=max((each.fvu for each in streams), default=0.0),
        )


def _num_tokens(dataset: Dataset) -> int:
    return sum(shard.num_tokens for shard in dataset.shards)
