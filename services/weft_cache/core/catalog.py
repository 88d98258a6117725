"""
Datasets come and are found. The bucket is the database: every call reads what it needs and keeps nothing.

`manifest.json` alone says which state a dataset is in, and changes only by compare-and-swap: open (the spec), sealed
(the spec and every shard), deleting (nothing can use it any more). While a dataset is open, a shard is a small record
of its own, created if absent, so that many writers never wait for each other.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from weft_cache.core import layout
from weft_cache.core.filtering import EVERYTHING, DatasetFilter
from weft_cache.core.listing import committed, newest_listed
from weft_cache.core.ports import Clock
from weft_cache.core.records import Dataset, DatasetSpec, ShardRecord, State
from weft_cache.core.retention import Retention
from weft_cache.core.tags import changed, check_key, check_tags
from weft_common.errors import AlreadyExistsError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from weft_common.pages import newest_first, paginate
from weft_common.resource_names import check_id
from weft_store import ObjectStore
from weft_store.documents import create_json, list_ids, read_json, update_json

_NEXT_DELETE = "repeat DeleteDataset to finish it"


class Catalog:
    """Creates and finds datasets; commits.py and sealing.py fill them, deletion.py deletes them."""

    def __init__(self, store: ObjectStore, clock: Clock) -> None:
        self.store = store
        self.clock = clock

    def create(self, dataset_id: str, spec: DatasetSpec) -> Dataset:
        """
        Create an open dataset; the same spec again is success.

        Raises:
            AlreadyExistsError: there is one of another spec.
            FailedPreconditionError: one of that id is being deleted.
        """
        check_id(dataset_id, field="dataset_id")
        spec.check()
        created = self.clock().isoformat()
        manifest = {"create_time": created, "spec": _spec_json(spec), "state": State.OPEN.value}
        try:
            create_json(self.store, layout.manifest_key(dataset_id), manifest)
        except AlreadyExistsError:
            return self._created_before(dataset_id, spec)
        return self._dataset(dataset_id, manifest)

    def _created_before(self, dataset_id: str, spec: DatasetSpec) -> Dataset:
        manifest = self._read(dataset_id)
        if manifest["state"] == State.DELETING:
            raise FailedPreconditionError(
                f"datasets/{dataset_id} is being deleted; {_NEXT_DELETE}, then create it again"
            )
        there = DatasetSpec.from_json(manifest["spec"])
        if there != spec:
            asked, found = _spec_json(spec), _spec_json(there)
            differing = ", ".join(
                f"{key} {found[key]!r}, not {asked[key]!r}" for key in asked if asked[key] != found[key]
            )
            raise AlreadyExistsError(
                f"datasets/{dataset_id} exists with another spec ({differing}); choose another id or delete it first"
            )
        return self._dataset(dataset_id, manifest)

    def get(self, dataset_id: str) -> Dataset:
        """
        Describe one dataset with its shards.

        Raises:
            NotFoundError: no such dataset, or it is being deleted.
        """
        return self._dataset(dataset_id, self.manifest(dataset_id))

    def sealed(self, dataset_id: str) -> Dataset:
        """
        Describe one dataset that must be sealed.

        Raises:
            FailedPreconditionError: it is still open.
        """
        dataset = self.get(dataset_id)
        if dataset.state is not State.SEALED:
            raise FailedPreconditionError(
                f"{dataset.name} is not sealed: it still takes shards and cannot be planned; wait until its harvest "
                "has ended, call SealDataset, or name a snapshot that SnapshotDataset took"
            )
        return dataset

    def update(
        self,
        dataset_id: str,
        set_tags: Mapping[str, str],
        remove_tags: Collection[str],
        retention: Retention | None = None,
    ) -> Dataset:
        """
        Change what is said about a dataset, whether it is open or sealed; what it holds stays.

        Args:
            dataset_id: Which one.
            set_tags: Over those of the same key.
            remove_tags: Keys.
            retention: In place of the one before; None leaves that.

        Raises:
            NotFoundError: no such dataset.
            InvalidArgumentError: a tag is none, or there would be too many; a rule of retention makes no sense.
        """
        if retention is not None:
            retention.check()
        check_id(dataset_id, field="name")
        put = check_tags(set_tags, field="set_tags")
        for key in remove_tags:
            check_key(key, field="remove_tags")

        def change(manifest: dict[str, Any]) -> dict[str, Any]:
            if manifest["state"] == State.DELETING:
                raise not_found(dataset_id)
            said = {
                "retention": manifest.get("retention") if retention is None else retention.to_json(),
                "tags": changed(manifest.get("tags", {}), put, remove_tags),
            }
            kept = {key: value for key, value in manifest.items() if key not in said}
            return {**kept, **{key: value for key, value in said.items() if value}}

        try:
            manifest = update_json(self.store, layout.manifest_key(dataset_id), change)
        except NotFoundError as error:
            raise not_found(dataset_id) from error
        return self._dataset(dataset_id, manifest)

    def list(self, page_size: int, page_token: str, wanted: DatasetFilter = EVERYTHING) -> tuple[list[Dataset], str]:
        """A page of those datasets that are wanted, newest first, and the token of the next page."""
        wanted.check()
        manifests: dict[str, dict[str, Any]] = {}
        for dataset_id in list_ids(self.store, layout.PREFIX, layout.MANIFEST):
            try:
                manifest = self.manifest(dataset_id)
            except NotFoundError:
                continue  # Deleted since the listing.
            if wanted.takes(manifest):
                manifests[dataset_id] = manifest

        def key(each: str) -> str:
            return newest_first(datetime.fromisoformat(manifests[each]["create_time"]).timestamp(), each)

        page, next_token = paginate(manifests, page_size, page_token, key, default_size=100)
        return [self._dataset(each, manifests[each]) for each in page], next_token

    def manifest(self, dataset_id: str) -> dict[str, Any]:
        """
        The manifest of a dataset that is not being deleted.

        Raises:
            NotFoundError: no such dataset.
        """
        check_id(dataset_id, field="name")
        manifest = self._read(dataset_id)
        if manifest["state"] == State.DELETING:
            raise not_found(dataset_id)
        return manifest

    def commits(self, dataset_id: str, known: Sequence[ShardRecord]) -> Iterator[ShardRecord]:
        """Shards of an open dataset, in no order; records that one of its snapshots lists are not read again."""
        return committed(self.store, dataset_id, known)

    def shard(self, dataset: Dataset, index: int) -> ShardRecord:
        """
        One shard of a dataset.

        Raises:
            NotFoundError: no such shard.
        """
        for shard in dataset.shards:
            if shard.index == index:
                return shard
        if index < 0:
            raise InvalidArgumentError(f"shard_index is {index}, expected 0 or more", field="shard_index")
        raise NotFoundError(f"{dataset.name} has no shard {index}; it has {len(dataset.shards)} shards, see GetDataset")

    def _read(self, dataset_id: str) -> dict[str, Any]:
        try:
            manifest, _ = read_json(self.store, layout.manifest_key(dataset_id))
        except NotFoundError as error:
            raise not_found(dataset_id) from error
        return manifest

    def _dataset(self, dataset_id: str, manifest: dict[str, Any]) -> Dataset:
        if manifest["state"] == State.SEALED:
            shards = tuple(ShardRecord.from_json(each) for each in manifest["shards"])
        else:
            known = newest_listed(self.store, dataset_id, manifest["create_time"])
            shards = tuple(sorted(self.commits(dataset_id, known), key=lambda shard: shard.index))
        return described(dataset_id, manifest, shards)


def described(
    dataset_id: str, manifest: Mapping[str, Any], shards: tuple[ShardRecord, ...], snapshot: int = 0
) -> Dataset:
    """A dataset of these shards, or a snapshot of it."""
    sealed = manifest.get("seal_time")
    return Dataset(
        id=dataset_id,
        spec=DatasetSpec.from_json(manifest["spec"]),
        state=State(manifest["state"]),
        create_time=datetime.fromisoformat(manifest["create_time"]),
        seal_time=datetime.fromisoformat(sealed) if sealed else None,
        shards=shards,
        snapshot=snapshot,
        tags=manifest.get("tags", {}),
        retention=Retention.from_json(manifest.get("retention", {})),
    )


def _spec_json(spec: DatasetSpec) -> dict[str, Any]:
    return {name: getattr(spec, name) for name in DatasetSpec.__slots__}


def not_found(dataset_id: str) -> NotFoundError:
    """There is no such dataset, or none that can be used."""
    return NotFoundError(f"there is no datasets/{dataset_id}; `weft datasets list` shows what there is")
