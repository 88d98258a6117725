"""The cache's core over memory, and shards to put into it."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np

from weft_cache.adapters.bucket_holders import BucketHolders
from weft_cache.adapters.weft_shards import WeftShards
from weft_cache.core.catalog import Catalog
from weft_cache.core.commits import Commits
from weft_cache.core.deletion import Deletion
from weft_cache.core.garbage import Garbage
from weft_cache.core.holds import Holds
from weft_cache.core.reading import Reading
from weft_cache.core.records import DatasetSpec, ShardRecord, Split
from weft_cache.core.sealing import Sealing
from weft_cache.core.snapshots import Snapshots
from weft_store import ObjectStore, open_store
from weft_store.shard import CodecSpec, EncodedShard, encode_shard

__all__ = ["SPEC", "Counted", "House"]

SPEC = DatasetSpec(
    model="models/m",
    model_revision="ab" * 32,
    num_layers=2,
    d_model=8,
    input_hook="mlp_in",
    output_hook="mlp_out",
    codec="bf16",
    target_fvu=0.0,
    corpus="corpora/c",
    corpus_digest="cd" * 32,
)


@dataclass
class Counted:
    """Counters that remember."""

    corrupted: int = 0
    bytes_by_stage: dict[tuple[str, str], int] = field(default_factory=dict)
    ratios: list[float] = field(default_factory=list)

    def moved(self, direction: str, stage: str, size_bytes: int) -> None:
        self.bytes_by_stage[direction, stage] = self.bytes_by_stage.get((direction, stage), 0) + size_bytes

    def corrupt(self) -> None:
        self.corrupted += 1

    def committed(self, size_bytes: int, num_values: int) -> None:
        self.ratios.append(2 * num_values / size_bytes)


@dataclass
class House:
    """The cache's core over one bucket; a clock that goes a second further each time it is looked at."""

    store: ObjectStore = field(default_factory=lambda: open_store("memory://"))
    now: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    counted: Counted = field(default_factory=Counted)

    def __post_init__(self) -> None:
        shards = WeftShards(self.store)
        self.catalog = Catalog(self.store, self.tick)
        self.sealing = Sealing(self.catalog)
        self.commits = Commits(self.catalog, shards, self.counted, presign_s=60)
        self.snapshots = Snapshots(self.catalog, self.sealing)
        self.reading = Reading(self.catalog, self.sealing, self.snapshots, shards, self.counted)
        self.holds = Holds(self.catalog, BucketHolders(self.store))
        self.deletion = Deletion(self.catalog, self.holds)
        self.garbage = Garbage(self.catalog, self.holds, self.deletion)

    def tick(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now

    def upload(
        self, dataset_id: str, index: int, num_tokens: int = 40, split: Split = Split.TRAIN, seed: int = 0
    ) -> tuple[ShardRecord, EncodedShard, dict[str, np.ndarray]]:
        """Encode random rows, put them where BeginShard says, and describe them."""
        rng = np.random.default_rng([seed, index])
        streams = {
            name: rng.standard_normal((SPEC.num_layers, num_tokens, SPEC.d_model)).astype(np.float32)
            for name in ("input", "output")
        }
        encoded = encode_shard(streams, CodecSpec("bf16"), row_group_tokens=16, attributes={})
        upload = self.commits.begin(dataset_id, index)
        if upload.committed is None:
            self.store.put(upload.key, encoded.data)
        record = ShardRecord(index, upload.key, encoded.sha256, len(encoded.data), num_tokens, split, 16)
        return record, encoded, streams

    def add(
        self, dataset_id: str, index: int, num_tokens: int = 40, split: Split = Split.TRAIN
    ) -> tuple[ShardRecord, dict[str, np.ndarray]]:
        """Upload and commit."""
        record, encoded, streams = self.upload(dataset_id, index, num_tokens, split)
        return self.commits.commit(dataset_id, record, encoded.statistics), streams
