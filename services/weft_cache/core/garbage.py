"""
What nobody needs any more: datasets whose retention is over, uploads that never became shards, what deletions left.

Nothing here decides by a clock alone whether something may go. A dataset goes by deletion.py, which finds every hold.
An upload goes once it can never be committed: its dataset is sealed without it, or its index is another upload's, or
this collection claimed the upload before its writer did (commits.py claims it too). Clocks only tell how long to wait
before that: ages of uploads by the bucket's own, those of datasets by the earlier of the bucket's and ours.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from weft_cache.core import layout
from weft_cache.core.catalog import Catalog
from weft_cache.core.commits import claim_upload
from weft_cache.core.deletion import Deletion, without_announcement
from weft_cache.core.holds import Holds
from weft_cache.core.records import State
from weft_cache.core.retention import Aged, Retention, expired
from weft_common.errors import (
    ConflictError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from weft_store.documents import encode_json, read_json

__all__ = ["DEFAULT_AGE_S", "Collection", "Garbage", "check_age"]

DEFAULT_AGE_S = 86_400
_LEAST_AGE_S = 3_600
_MOST_NAMED = 1000
_MOST_PROBLEMS = 100


@dataclass(slots=True)
class Collection:
    """
    What was found, and deleted where that was asked for.

    Args:
        deleted: Whether it was.
        expired: Ids of datasets, the first thousand.
        held: Ids of datasets that are over but stay, and who holds them; the first thousand.
        num_uploads: Uploads that never became shards.
        upload_bytes: Their size.
        num_leftovers: Objects that were left of datasets that are gone.
        problems: What could not be looked at; the first hundred.
    """

    deleted: bool
    expired: list[str] = field(default_factory=list)
    held: dict[str, list[str]] = field(default_factory=dict)
    num_uploads: int = 0
    upload_bytes: int = 0
    num_leftovers: int = 0
    problems: list[str] = field(default_factory=list)


class Garbage:
    """Finds and deletes it."""

    def __init__(self, catalog: Catalog, holds: Holds, deletion: Deletion) -> None:
        self._catalog = catalog
        self._holds = holds
        self._deletion = deletion
        self._store = catalog.store

    def collect(
        self, *, delete: bool, min_age_s: int = 0, progress: Callable[[int, int], None] = lambda *_: None
    ) -> Collection:
        """
        Look through all datasets.

        Args:
            delete: Whether to delete what is found.
            min_age_s: Age of an upload, in seconds, from which it counts; 0 means a day.
            progress: Called with the datasets looked through and those there are; what it raises ends the collection.

        Raises:
            InvalidArgumentError: `min_age_s` is below an hour, while uploads may be on their way.
        """
        min_age_s = check_age(min_age_s)
        self._store.put(layout.MOMENT, b"")
        bucket_s = self._store.info(layout.MOMENT).modified_s
        found = Collection(delete)
        ids = list(self._store.list_folders(layout.PREFIX))
        seen: dict[str, Aged] = {}
        digests: dict[str, str] = {}
        for dataset_id in ids:
            progress(0, len(ids))
            looked = self._look(dataset_id, found)
            if looked is not None:
                # Manifests of large datasets are large: only a digest stays.
                digests[dataset_id], seen[dataset_id] = _digest(looked[0]), looked[1]
        now = min(datetime.fromtimestamp(bucket_s, UTC), self._catalog.clock())
        over = set(expired(list(seen.values()), now)[:_MOST_NAMED])
        for done, dataset_id in enumerate(ids):
            progress(done, len(ids))
            if dataset_id in over:
                self._let_go(seen[dataset_id], digests[dataset_id], found)
            elif dataset_id in seen:
                self._tidy(dataset_id, bucket_s - min_age_s, found)
        progress(len(ids), len(ids))
        return found

    def _look(self, dataset_id: str, found: Collection) -> tuple[dict[str, Any], Aged] | None:
        """A dataset's manifest and age; where no dataset is left, what lies under its name is cleared."""
        try:
            manifest, _ = read_json(self._store, layout.manifest_key(dataset_id))
            if manifest["state"] != State.DELETING:
                return without_announcement(manifest), self._aged(dataset_id, manifest)
        except NotFoundError:
            pass
        except (DataLossError, KeyError, TypeError, ValueError) as error:
            _note(found, f"datasets/{dataset_id}: its manifest is damaged ({error}); restore it or delete its objects")
            return None
        if found.deleted:
            found.num_leftovers += self._deletion.clear_leftovers(dataset_id)
        else:
            found.num_leftovers += sum(1 for _ in self._store.list(layout.dataset_prefix(dataset_id)))
        return None

    def _aged(self, dataset_id: str, manifest: dict[str, Any]) -> Aged:
        retention = Retention.from_json(manifest.get("retention", {}))
        created = datetime.fromisoformat(manifest["create_time"])
        sealed = manifest["state"] == State.SEALED
        active = datetime.fromisoformat(manifest["seal_time"]) if sealed else created
        if not sealed and retention.keep_days:
            written = [item.modified_s for item in self._store.list(layout.commits_prefix(dataset_id))]
            active = max(created, datetime.fromtimestamp(max(written, default=0.0), UTC))
        return Aged(dataset_id, sealed, created, active, manifest.get("tags", {}), retention)

    def _let_go(self, one: Aged, digest: str, found: Collection) -> None:
        dataset_id = one.id

        def still(manifest: dict[str, Any]) -> bool:
            """Tagged, kept longer, sealed, made anew or given a shard since: it is another question then."""
            return _digest(manifest) == digest and self._aged(dataset_id, manifest) == one

        try:
            manifest, _ = read_json(self._store, layout.manifest_key(dataset_id))
            held = self._holds.live(dataset_id, manifest["create_time"])
            if held:
                found.held[dataset_id] = [hold.holder for hold in held]
                return
            if found.deleted:
                self._deletion.delete(dataset_id, still)
        except FailedPreconditionError as error:
            found.held[dataset_id] = [error.metadata["holder"]]
        except NotFoundError:
            return
        except (ConflictError, DataLossError) as error:
            _note(found, f"datasets/{dataset_id}: {error.message}")
        else:
            found.expired.append(dataset_id)

    def _tidy(self, dataset_id: str, before_s: float, found: Collection) -> None:
        """Find uploads that never became shards, and holds that hold no more."""
        try:
            manifest = self._catalog.manifest(dataset_id)
            sealed = {each["key"] for each in manifest["shards"]} if manifest["state"] == State.SEALED else None
            for item in list(self._store.list(layout.shards_prefix(dataset_id))):
                if item.modified_s > before_s:
                    continue
                if sealed is not None:
                    lost = item.key not in sealed
                else:
                    lost = self._is_lost(dataset_id, manifest, item.key, found.deleted)
                if lost:
                    found.num_uploads += 1
                    found.upload_bytes += item.size_bytes
                    self._delete([item.key], found)
            self._delete((hold.key for hold in self._holds.dead(dataset_id, manifest["create_time"])), found)
        except NotFoundError:
            return  # Deleted meanwhile.
        except (DataLossError, KeyError) as error:
            _note(found, f"datasets/{dataset_id}: {error}")

    def _is_lost(self, dataset_id: str, manifest: dict[str, Any], key: str, claim: bool) -> bool:
        """Whether an upload to an open dataset is no shard and can never become one; `claim` sees to that."""
        index = layout.upload_index(key)
        if index is None:
            return False
        try:
            committed, _ = read_json(self._store, layout.commit_key(dataset_id, index))
        except NotFoundError:
            if not claim:
                return self._is_unclaimed(key)
            # A seal clears away records and claims, after it has turned the manifest: what was not found while the
            # dataset is still open was not there.
            return claim_upload(self._store, key, "garbage") and self._is_open(dataset_id, manifest["create_time"])
        return bool(committed["key"] != key)

    def _is_open(self, dataset_id: str, create_time: str) -> bool:
        try:
            manifest, _ = read_json(self._store, layout.manifest_key(dataset_id))
        except NotFoundError:
            return False
        return manifest["state"] == State.OPEN and bool(manifest["create_time"] == create_time)

    def _is_unclaimed(self, key: str) -> bool:
        try:
            return bool(read_json(self._store, layout.upload_claim_key(key))[0]["for"] == "garbage")
        except NotFoundError:
            return True

    def _delete(self, keys: Iterable[str], found: Collection) -> None:
        if found.deleted:
            for key in keys:
                self._store.delete(key)


def check_age(min_age_s: int) -> int:
    """Return from which age on an upload counts. InvalidArgumentError: uploads as young may be on their way."""
    if min_age_s and min_age_s < _LEAST_AGE_S:
        raise InvalidArgumentError(
            f"min_age_s is {min_age_s}, expected {_LEAST_AGE_S} or more: younger uploads may be on their way; 0 means "
            f"{DEFAULT_AGE_S}",
            field="min_age_s",
        )
    return min_age_s or DEFAULT_AGE_S


def _digest(manifest: dict[str, Any]) -> str:
    """Stands for what a manifest says to readers."""
    return hashlib.sha256(encode_json(without_announcement(manifest))).hexdigest()


def _note(found: Collection, problem: str) -> None:
    if len(found.problems) < _MOST_PROBLEMS:
        found.problems.append(problem)
