"""
Leases of a harvest: who reads which sequences now, and which are done.

    harvests/{id}/leases/{n}.json

A lease is taken by a conditional write and holds until it expires; its owner puts the end off while it works. Nothing
depends on clocks for being right: two replicas that read the same lease write the same shard, and the first commit
wins. Expiry only decides when another one starts over.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from weft_common.errors import AlreadyExistsError, ConflictError, NotFoundError
from weft_store.documents import create_json, encode_json, read_json, update_json
from weft_store.port import ObjectStore

__all__ = ["DoneLease", "LeaseBoard"]


@dataclass(frozen=True)
class DoneLease:
    """What a finished lease left behind; times in seconds since 1970."""

    index: int
    split: str
    num_tokens: int
    num_skipped: int
    start_s: float
    end_s: float


class LeaseBoard:
    """
    The leases of one harvest as one replica sees them. Calls block.

    Args:
        store: The bucket.
        harvest_id: Whose leases.
        num_leases: How many there are.
        owner: Unique to this process.
        lease_s: How long a lease holds.
        clock: Seconds since 1970.
    """

    def __init__(
        self,
        store: ObjectStore,
        harvest_id: str,
        num_leases: int,
        owner: str,
        *,
        lease_s: float = 20.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._folder = f"harvests/{harvest_id}/leases"
        self._num_leases = num_leases
        self._owner = owner
        self._lease_s = lease_s
        self._clock = clock
        self._done: dict[int, DoneLease] = {}
        self._taken_until: dict[int, float] = {}

    def take(self, order: Iterable[int] | None = None) -> int | None:
        """Take the first lease of an order, by default by index, that nobody holds; None where all are done or held."""
        for index in range(self._num_leases) if order is None else order:
            if index in self._done or self._taken_until.get(index, 0.0) > self._clock():
                continue
            if self._try(index):
                return index
        return None

    def extend(self, indices: Iterable[int]) -> None:
        """Put off the end of leases that this replica holds; one that another has taken since is left to it."""
        for index in indices:
            try:
                document, etag = read_json(self._store, self._key(index))
                if document["owner"] != self._owner or document["state"] == "done":
                    continue
                self._write(index, {**document, "expires_s": self._clock() + self._lease_s}, etag)
            except (ConflictError, NotFoundError):
                continue

    def give_up(self, indices: Iterable[int]) -> None:
        """Let go of leases that this replica holds, so that another need not wait for their end."""
        for index in indices:
            try:
                document, etag = read_json(self._store, self._key(index))
                if document["owner"] == self._owner and document["state"] != "done":
                    self._write(index, {**document, "expires_s": 0.0}, etag)
            except (ConflictError, NotFoundError):
                continue

    def finish(self, index: int, *, split: str, num_tokens: int, num_skipped: int) -> None:
        """Mark a lease whose shard is committed; whoever comes first says so, and all say the same."""

        def change(document: dict[str, Any]) -> dict[str, Any]:
            if document["state"] == "done":
                return document
            return {
                **document,
                "state": "done",
                "split": split,
                "num_tokens": num_tokens,
                "num_skipped": num_skipped,
                "end_s": self._clock(),
            }

        self._remember(index, update_json(self._store, self._key(index), change))

    def refresh(self) -> list[DoneLease]:
        """Read what others have done since, and list all that is done."""
        for index in range(self._num_leases):
            if index not in self._done:
                try:
                    self._remember(index, read_json(self._store, self._key(index))[0])
                except NotFoundError:
                    continue
        return self.known()

    def known(self) -> list[DoneLease]:
        """List the leases that are known to be done, without looking."""
        return [self._done[index] for index in sorted(self._done)]

    def all_done(self) -> bool:
        """Whether every lease is known to be done."""
        return len(self._done) == self._num_leases

    def _try(self, index: int) -> bool:
        now = self._clock()
        fresh = {"owner": self._owner, "state": "taken", "start_s": now, "expires_s": now + self._lease_s}
        try:
            create_json(self._store, self._key(index), fresh)
        except AlreadyExistsError:
            pass
        else:
            return True
        try:
            document, etag = read_json(self._store, self._key(index))
            self._remember(index, document)
            if document["state"] == "done" or document["expires_s"] > now:
                return False
            self._write(index, fresh, etag)
        except (ConflictError, NotFoundError):
            return False  # another replica was faster
        return True

    def _remember(self, index: int, document: dict[str, Any]) -> None:
        if document["state"] != "done":
            self._taken_until[index] = float(document["expires_s"])
            return
        self._done[index] = DoneLease(
            index=index,
            split=str(document["split"]),
            num_tokens=int(document["num_tokens"]),
            num_skipped=int(document["num_skipped"]),
            start_s=float(document["start_s"]),
            end_s=float(document["end_s"]),
        )

    def _write(self, index: int, document: dict[str, Any], etag: str) -> None:
        self._store.put(self._key(index), encode_json(document), if_match=etag)

    def _key(self, index: int) -> str:
        return f"{self._folder}/{index}.json"
