"""Shards join an open dataset: the first commit of an index wins, and every later one gets it back."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weft_cache.core import layout, moments
from weft_cache.core.catalog import Catalog
from weft_cache.core.ports import Counters, Shards
from weft_cache.core.records import DatasetSpec, ShardRecord, State
from weft_common.errors import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from weft_store import ObjectStore
from weft_store.documents import create_json, encode_json, read_json
from weft_store.shard import LayerStatistics


@dataclass(frozen=True, slots=True)
class Upload:
    """Where a shard goes; `committed` where there is nothing left to put."""

    key: str
    url: str
    committed: ShardRecord | None


class Commits:
    """Begins and commits shards."""

    def __init__(self, catalog: Catalog, shards: Shards, counters: Counters, *, presign_s: int) -> None:
        self._catalog = catalog
        self._store = catalog.store
        self._shards = shards
        self._counters = counters
        self._presign_s = presign_s

    def begin(self, dataset_id: str, index: int) -> Upload:
        """
        Tell where a shard goes.

        Raises:
            FailedPreconditionError: the dataset is sealed and has no shard of this index.
        """
        if index < 0:
            raise InvalidArgumentError(f"shard_index is {index}, expected 0 or more", field="shard_index")
        manifest = self._catalog.manifest(dataset_id)
        committed = self._committed(dataset_id, index, manifest)
        if committed is not None:
            return Upload(committed.key, "", committed)
        _refuse_sealed(dataset_id, manifest)
        key = layout.shard_key(dataset_id, index, secrets.token_hex(4))
        return Upload(key, self._store.presign_put(key, self._presign_s), None)

    def put(self, dataset_id: str, index: int, data: bytes) -> Upload:
        """
        Store a shard for a writer that cannot reach the bucket; it counts once it is committed.

        Raises:
            FailedPreconditionError: the dataset is sealed and has no shard of this index.
        """
        upload = self.begin(dataset_id, index)
        if upload.committed is None:
            self._store.put(upload.key, data)
        return upload

    def commit(self, dataset_id: str, shard: ShardRecord, statistics: Sequence[LayerStatistics]) -> ShardRecord:
        """
        Add a shard that lies in the bucket, after reading all of it.

        Returns:
            The shard that is committed under this index: this one, or the one that came first.

        Raises:
            DataLossError: what lies in the bucket is not what the request says.
            FailedPreconditionError: the dataset is sealed and has no shard of this index.
        """
        shard.check()
        manifest = self._catalog.manifest(dataset_id)
        committed = self._committed(dataset_id, shard.index, manifest)
        if committed is not None:
            return committed
        _refuse_sealed(dataset_id, manifest)
        if not layout.is_shard_key(shard.key, dataset_id, shard.index):
            raise InvalidArgumentError(
                f"shard.key is {shard.key!r}, expected the key that BeginShard gave for shard {shard.index} of "
                f"datasets/{dataset_id}",
                field="shard.key",
            )
        spec = DatasetSpec.from_json(manifest["spec"])
        moments.check(statistics, num_layers=spec.num_layers, d_model=spec.d_model, num_tokens=shard.num_tokens)
        self._check_object(spec, shard)
        if not claim_upload(self._store, shard.key, "commit"):
            raise DataLossError(f"{shard.key} was never committed and was collected as garbage; begin the shard anew")
        self._store.put(
            layout.shard_statistics_key(dataset_id, shard.index, shard.sha256),
            encode_json({"layers": moments.to_json(statistics)}),
        )
        try:
            create_json(self._store, layout.commit_key(dataset_id, shard.index), shard.to_json())
        except AlreadyExistsError:
            return self._settle(dataset_id, shard, ours=False)
        settled = self._settle(dataset_id, shard, ours=True)
        self._counters.committed(shard.size_bytes, 2 * shard.num_tokens * spec.num_layers * spec.d_model)
        return settled

    def _settle(self, dataset_id: str, shard: ShardRecord, *, ours: bool) -> ShardRecord:
        """
        Find what is committed after a commit record was written, by us or by another.

        The dataset may have been sealed or deleted since it was looked at; its manifest then has the last word, and a
        record that it does not know is taken back.
        """
        try:
            manifest = self._catalog.manifest(dataset_id)
        except NotFoundError:
            first, final = None, True
        else:
            first, final = self._committed(dataset_id, shard.index, manifest), manifest["state"] != State.OPEN
        if final and ours:
            self._store.delete(layout.commit_key(dataset_id, shard.index))
        if final:
            self._store.delete(layout.upload_claim_key(shard.key))
        if first is None or first.sha256 != shard.sha256:
            self._store.delete(layout.shard_statistics_key(dataset_id, shard.index, shard.sha256))
        if first is None or first.key != shard.key:
            self._store.delete(shard.key)
        if first is None:
            raise FailedPreconditionError(
                f"shard {shard.index} was not taken: datasets/{dataset_id} was sealed or deleted meanwhile; "
                "harvest into a new dataset"
            )
        return first

    def _committed(self, dataset_id: str, index: int, manifest: dict[str, Any]) -> ShardRecord | None:
        if manifest["state"] == State.SEALED:
            shards = manifest["shards"]
            return ShardRecord.from_json(shards[index]) if index < len(shards) else None
        try:
            record, _ = read_json(self._store, layout.commit_key(dataset_id, index))
        except NotFoundError:
            return None
        return ShardRecord.from_json(record)

    def _check_object(self, spec: DatasetSpec, shard: ShardRecord) -> None:
        self._counters.moved("in", "commit", shard.size_bytes)
        try:
            header = self._shards.verify(shard.key, shard.sha256, shard.size_bytes)
        except DataLossError:
            self._counters.corrupt()
            raise
        expected = {
            "layers": (header.num_layers, spec.num_layers, "spec"),
            "d_model": (header.d_model, spec.d_model, "spec"),
            "codec": (header.codec, spec.codec, "spec"),
            "tokens": (header.num_tokens, shard.num_tokens, "request"),
            "row_group_tokens": (header.row_group_tokens, shard.row_group_tokens, "request"),
        }
        wrong = [
            f"{what} {has!r}, the {whose} says {want!r}" for what, (has, want, whose) in expected.items() if has != want
        ]
        if wrong:
            self._counters.corrupt()
            raise DataLossError(f"{shard.key} is not what was announced: it has {'; '.join(wrong)}; write it again")


def claim_upload(store: ObjectStore, key: str, purpose: str) -> bool:
    """
    Decide what becomes of an upload to an open dataset: `commit` or `garbage`, whoever comes first, for good.

    Returns:
        Whether it is this purpose's.
    """
    claim = layout.upload_claim_key(key)
    try:
        create_json(store, claim, {"for": purpose})
    except AlreadyExistsError:
        return bool(read_json(store, claim)[0]["for"] == purpose)
    return True


def _refuse_sealed(dataset_id: str, manifest: dict[str, Any]) -> None:
    if manifest["state"] == State.SEALED:
        raise FailedPreconditionError(
            f"datasets/{dataset_id} is sealed with {len(manifest['shards'])} shards and takes no more; "
            "harvest into a new dataset"
        )
