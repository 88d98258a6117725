"""
A dataset becomes complete and immutable.

Statistics are merged and written first; then the manifest turns, by compare-and-swap, from open to sealed with every
shard in it; then what only an open dataset needs is cleared away. A crash at any point is put right by sealing again.
"""

from collections.abc import Sequence
from typing import Any

from weft_cache.core import layout, moments
from weft_cache.core.catalog import Catalog
from weft_cache.core.listing import read_all
from weft_cache.core.records import Dataset, ShardRecord, Split, State
from weft_common.errors import DataLossError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from weft_store.documents import encode_json, read_json, update_json
from weft_store.shard import LayerStatistics, merge_statistics


class Sealing:
    """Seals datasets and reads their statistics."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._store = catalog.store

    def seal(self, dataset_id: str, num_shards: int) -> Dataset:
        """
        Make a dataset immutable; the same call again is success.

        Raises:
            FailedPreconditionError: a shard is missing or too many are there, or there are no tokens, or it was sealed
                with another number of shards.
        """
        if num_shards < 1:
            raise InvalidArgumentError(f"num_shards is {num_shards}, expected 1 or more", field="num_shards")
        dataset = self._catalog.get(dataset_id)
        if dataset.state is State.OPEN:
            _refuse_incomplete(dataset, num_shards)
            dataset = self._complete(dataset)
        if len(dataset.shards) != num_shards:
            raise FailedPreconditionError(
                f"{dataset.name} is sealed with {len(dataset.shards)} shards, not {num_shards}; it cannot change now"
            )
        self._clear(dataset)
        return dataset

    def train_statistics(self, dataset: Dataset) -> list[LayerStatistics]:
        """Statistics over the training split; empty while the dataset is open or when it has no such tokens."""
        return self._read_statistics(dataset, "train") if dataset.state is State.SEALED else []

    def all_statistics(self, dataset: Dataset) -> list[LayerStatistics]:
        """Statistics over both splits, of an open dataset too."""
        if dataset.state is State.SEALED:
            return self._read_statistics(dataset, "all")
        return self.merge(dataset.id, dataset.shards)

    def merge(
        self, dataset_id: str, shards: Sequence[ShardRecord], first: Sequence[LayerStatistics] = ()
    ) -> list[LayerStatistics]:
        """
        Merge the statistics of shards of an open dataset into those of others.

        Raises:
            NotFoundError: those of a shard are not there, because it was sealed or deleted meanwhile.
        """
        merged = list(first)
        filled = (shard for shard in shards if shard.num_tokens > 0)
        keys = (layout.shard_statistics_key(dataset_id, shard.index, shard.sha256) for shard in filled)
        # Statistics are large beside records: what was merged is let go of at once.
        for document in read_all(self._store, keys):
            part = moments.from_json(document["layers"])
            merged = merge_statistics([merged, part]) if merged else part
        return merged

    def _complete(self, dataset: Dataset) -> Dataset:
        try:
            self._write_statistics(dataset)
        except NotFoundError as error:
            # Another call sealed it and cleared away what was being read, or the bucket lost something.
            again = self._catalog.get(dataset.id)
            if again.state is State.OPEN:
                raise DataLossError(f"statistics of a shard of {dataset.name} are gone; delete the dataset") from error
            return again
        self._turn(dataset)
        return self._catalog.get(dataset.id)

    def _turn(self, dataset: Dataset) -> None:
        def to_sealed(manifest: dict[str, Any]) -> dict[str, Any]:
            if manifest["state"] != State.OPEN:
                return manifest
            return {
                **manifest,
                "held_out_tokens": dataset.num_tokens(Split.HELD_OUT),
                "seal_time": self._catalog.clock().isoformat(),
                "shards": [shard.to_json() for shard in dataset.shards],
                "state": State.SEALED.value,
                "train_tokens": dataset.num_tokens(Split.TRAIN),
            }

        update_json(self._store, layout.manifest_key(dataset.id), to_sealed)

    def _write_statistics(self, dataset: Dataset) -> None:
        of = {split: [shard for shard in dataset.shards if shard.split is split] for split in Split}
        train, held_out = (self.merge(dataset.id, of[split]) for split in (Split.TRAIN, Split.HELD_OUT))
        parts = {"train": train, "all": merge_statistics([part for part in (train, held_out) if part])}
        document = {part: moments.to_json(statistics) for part, statistics in parts.items()}
        self._store.put(layout.statistics_key(dataset.id), encode_json(document))

    def _read_statistics(self, dataset: Dataset, part: str) -> list[LayerStatistics]:
        document, _ = read_json(self._store, layout.statistics_key(dataset.id))
        return moments.from_json(document[part])

    def _clear(self, dataset: Dataset) -> None:
        kept = {shard.key for shard in dataset.shards}
        for prefix in (layout.commits_prefix(dataset.id), layout.shards_prefix(dataset.id)):
            for item in self._store.list(prefix):
                if item.key not in kept:
                    self._store.delete(item.key)


def _refuse_incomplete(dataset: Dataset, num_shards: int) -> None:
    indices = {shard.index for shard in dataset.shards}
    missing = sorted(set(range(num_shards)) - indices)
    if missing:
        raise FailedPreconditionError(
            f"{dataset.name} lacks {len(missing)} of {num_shards} shards ({_some(missing)}); commit them, then seal"
        )
    extra = sorted(index for index in indices if index >= num_shards)
    if extra:
        raise FailedPreconditionError(
            f"{dataset.name} has shards beyond num_shards {num_shards} ({_some(extra)}); seal with {max(extra) + 1} or "
            "delete the dataset"
        )
    if not any(shard.num_tokens for shard in dataset.shards):
        raise FailedPreconditionError(
            f"{dataset.name} holds no tokens: every token was left out; harvest more text or raise max_norm_ratio"
        )


def _some(indices: list[int]) -> str:
    return ", ".join(map(str, indices[:8])) + (" and more" if len(indices) > 8 else "")
