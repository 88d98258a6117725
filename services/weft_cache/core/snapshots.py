"""
What is committed to an open dataset by now, numbered and immutable.

Statistics are merged and written first, under a key of their own contents; then the list of shards, put if absent under
the next number. No lock is needed: while a dataset is open its commit records are only added to, so a list that was
read before the manifest was seen open is whole. Numbers are looked up before shards are, and a number that another took
meanwhile has everything looked at again: so each snapshot has every shard of those before it.
What the snapshot before lists is not read again. Where very much is new it is taken in portions, each a snapshot: what
a call has done counts, even if its caller has given it up.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from weft_cache.core import layout, moments
from weft_cache.core.catalog import Catalog, described
from weft_cache.core.listing import listed, snapshot_numbers
from weft_cache.core.records import Dataset, ShardRecord, Split, State
from weft_cache.core.sealing import Sealing
from weft_common.errors import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from weft_store.documents import create_json, encode_json, read_json
from weft_store.shard import LayerStatistics

_MOST_NEW_SHARDS = 1024
"""Of one snapshot: their statistics, 1 MB a shard of SmolLM2, are read and merged in about half a minute."""


class Snapshots:
    """Takes and reads snapshots."""

    def __init__(self, catalog: Catalog, sealing: Sealing) -> None:
        self._catalog = catalog
        self._sealing = sealing
        self._store = catalog.store

    def take(self, dataset_id: str) -> Dataset:
        """
        Number what is committed by now, or find the newest snapshot where nothing has come since.

        Returns:
            The snapshot; of a sealed dataset the dataset itself, whose `snapshot` is 0.

        Raises:
            NotFoundError: No such dataset, or it was deleted meanwhile.
            FailedPreconditionError: Nothing is committed yet.
        """
        while True:
            manifest = self._catalog.manifest(dataset_id)
            if manifest["state"] == State.SEALED:
                return self._catalog.get(dataset_id)
            taken = self._try(dataset_id, manifest)
            if taken is not None:
                return taken

    def get(self, dataset_id: str, number: int) -> Dataset:
        """
        Describe a snapshot with its shards.

        Raises:
            InvalidArgumentError: `number` is below 1.
            NotFoundError: No such dataset, or it has no such snapshot.
            FailedPreconditionError: The seal left out a shard of it, which nobody can read any more.
        """
        if number < 1:
            raise InvalidArgumentError(
                f"snapshot is {number}, expected 1 or more, or 0 for the dataset itself", field="snapshot"
            )
        manifest = self._catalog.manifest(dataset_id)
        shards = self._read(dataset_id, manifest, number)
        if shards is None:
            raise NotFoundError(
                f"datasets/{dataset_id} has no snapshot {number}; `weft datasets snapshot {dataset_id}` takes one",
                field="snapshot",
            )
        if manifest["state"] == State.SEALED:
            sealed = {ShardRecord.from_json(each) for each in manifest["shards"]}
            lost = [shard.index for shard in shards if shard not in sealed]
            if lost:
                raise FailedPreconditionError(
                    f"datasets/{dataset_id} was sealed without shard {lost[0]} of its snapshot {number}, which came "
                    "after the last one that the seal was told of; use the sealed dataset",
                    field="snapshot",
                )
        return described(dataset_id, manifest, shards, number)

    def statistics(self, snapshot: Dataset) -> list[LayerStatistics]:
        """Statistics over a snapshot's training split; empty where it has no such tokens."""
        key = layout.snapshot_statistics_key(snapshot.id, snapshot.snapshot, _digest(snapshot.shards))
        try:
            document, _ = read_json(self._store, key)
        except NotFoundError as error:
            raise DataLossError(
                f"statistics of snapshot {snapshot.snapshot} of {snapshot.name} are gone; take another snapshot"
            ) from error
        return moments.from_json(document["train"])

    def shards(self, dataset_id: str, number: int, since: int) -> tuple[ShardRecord, ...]:
        """
        Shards that a plan is made of, in order of their index.

        Args:
            number: The snapshot; 0 means the sealed dataset.
            since: An earlier snapshot, whose shards are left out; 0 leaves out none.

        Raises:
            InvalidArgumentError: `since` is no earlier snapshot.
            FailedPreconditionError: `number` is 0 and the dataset is open.
        """
        if since < 0 or (since and number and since >= number):
            raise InvalidArgumentError(
                f"since_snapshot is {since}, expected one before snapshot {number}, or 0", field="since_snapshot"
            )
        shards = self.get(dataset_id, number).shards if number else self._catalog.sealed(dataset_id).shards
        if not since:
            return shards
        before = set(self.get(dataset_id, since).shards)
        return tuple(shard for shard in shards if shard not in before)

    def _try(self, dataset_id: str, manifest: dict[str, Any]) -> Dataset | None:
        """Take a snapshot of an open dataset; None where it was sealed, another was faster, or more is left."""
        newest = max(self._numbers(dataset_id), default=0)
        before = (self._read(dataset_id, manifest, newest) if newest else None) or ()
        try:
            found = tuple(sorted(self._catalog.commits(dataset_id, before), key=lambda shard: shard.index))
            if self._catalog.manifest(dataset_id) != manifest:
                return None
            if before and before == found:
                return described(dataset_id, manifest, found, newest)
            if not any(shard.num_tokens for shard in found):
                raise FailedPreconditionError(
                    f"datasets/{dataset_id} holds no tokens yet: {len(found)} shards are committed; take a snapshot "
                    "once its harvest has gone further, `weft harvests get` shows how far it is"
                )
            shards = _portion(before, found)
            statistics = self._merge(dataset_id, newest, before, shards)
        except NotFoundError as error:
            # A seal or a deletion cleared away what was being read, or the bucket lost something.
            if self._catalog.manifest(dataset_id) != manifest:
                return None
            raise DataLossError(
                f"a commit record of datasets/{dataset_id} or its statistics are gone; delete the dataset"
            ) from error
        taken = self._write(dataset_id, manifest, newest + 1, shards, statistics)
        return taken if shards == found else None

    def _write(
        self,
        dataset_id: str,
        manifest: dict[str, Any],
        number: int,
        shards: tuple[ShardRecord, ...],
        statistics: Sequence[LayerStatistics],
    ) -> Dataset | None:
        key, digest = layout.snapshot_key(dataset_id, number), _digest(shards)
        statistics_key = layout.snapshot_statistics_key(dataset_id, number, digest)
        self._store.put(statistics_key, encode_json({"train": moments.to_json(statistics)}))
        document = {
            "dataset_create_time": manifest["create_time"],
            "held_out_tokens": sum(shard.num_tokens for shard in shards if shard.split is Split.HELD_OUT),
            "shards": [shard.to_json() for shard in shards],
            "train_tokens": sum(shard.num_tokens for shard in shards if shard.split is Split.TRAIN),
        }
        try:
            create_json(self._store, key, document)
        except AlreadyExistsError:
            there = self._read(dataset_id, manifest, number)
            if there is None or _digest(there) != digest:
                self._store.delete(statistics_key)
            return None
        try:
            present = self._catalog.manifest(dataset_id)
        except NotFoundError:
            # The deletion may have listed what there was before this was written.
            self._store.delete(key)
            self._store.delete(statistics_key)
            raise
        # Another one of this name, made since, knows by its time that this is none of its own; a sealed one needs none.
        return described(dataset_id, manifest, shards, number) if present == manifest else None

    def _merge(
        self, dataset_id: str, newest: int, before: tuple[ShardRecord, ...], shards: tuple[ShardRecord, ...]
    ) -> list[LayerStatistics]:
        """Merge what came since the newest snapshot into its statistics, so that no shard's are read twice."""
        known = set(before)
        train = [shard for shard in shards if shard.split is Split.TRAIN and shard not in known]
        first: list[LayerStatistics] = []
        if before:
            key = layout.snapshot_statistics_key(dataset_id, newest, _digest(before))
            first = moments.from_json(read_json(self._store, key)[0]["train"])
        return self._sealing.merge(dataset_id, train, first)

    def _numbers(self, dataset_id: str) -> set[int]:
        return snapshot_numbers(self._store, dataset_id)

    def _read(self, dataset_id: str, manifest: dict[str, Any], number: int) -> tuple[ShardRecord, ...] | None:
        return listed(self._store, dataset_id, manifest["create_time"], number)


def _portion(before: Sequence[ShardRecord], found: tuple[ShardRecord, ...]) -> tuple[ShardRecord, ...]:
    """What the next snapshot lists: all that was found, or all before and as many new shards as one takes."""
    if len(found) - len(before) <= _MOST_NEW_SHARDS:
        return found
    known = set(before)
    new = {shard.index for shard in [shard for shard in found if shard not in known][:_MOST_NEW_SHARDS]}
    return tuple(shard for shard in found if shard in known or shard.index in new)


def _digest(shards: Sequence[ShardRecord]) -> str:
    """Sixteen hex digits that stand for a list of shards."""
    listed = [[shard.index, shard.sha256, shard.key] for shard in shards]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16]
