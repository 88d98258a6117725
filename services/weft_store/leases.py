"""
Leases in a bucket: who works on which part of some work now, and which parts are done.

    {folder}/{name}.json

A lease is taken by a conditional write and holds until it expires; its owner puts the end off while it works. Nothing
may depend on clocks for being right: two that work on the same part must come to the same. Expiry only decides when
another one starts over.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

from weft_common.errors import AlreadyExistsError, ConflictError, InternalError, NotFoundError
from weft_store.documents import Document, create_json, encode_json, read_json, update_json
from weft_store.port import ObjectStore

__all__ = ["Leases"]

Name = TypeVar("Name", int, str)


class Leases(Generic[Name]):
    """
    The leases of some work as one process sees them. Calls block.

    Args:
        store: The bucket.
        folder: Where they lie.
        owner: Unique to this process.
        lease_s: How long a lease holds.
        most_takes: How often one is taken from an owner that gave no sign of life any more, before the work is given
            up; None for no limit.
        clock: Seconds since 1970.
    """

    def __init__(
        self,
        store: ObjectStore,
        folder: str,
        owner: str,
        *,
        lease_s: float = 20.0,
        most_takes: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._folder, self._owner = store, folder, owner
        self._lease_s, self._most_takes, self._clock = lease_s, most_takes, clock
        self._done: dict[Name, Document] = {}
        self._taken_until: dict[Name, float] = {}

    @property
    def done(self) -> Mapping[Name, Document]:
        """What is known to be done, and what was said of it."""
        return self._done

    def take_first(self, order: Iterable[Name]) -> Name | None:
        """
        Take the first lease that nobody holds; None where all are done or held.

        Raises:
            InternalError: Too many owners of it have died; who asks again begins to count anew.
        """
        for name in order:
            if name in self._done or self._taken_until.get(name, 0.0) > self._clock():
                continue
            if self._try(name):
                return name
        return None

    def extend(self, names: Iterable[Name], notes: Mapping[Name, Mapping[str, Any]] | None = None) -> frozenset[Name]:
        """
        Put off the end of leases that this process holds, and write down notes on them.

        Returns:
            Those that it holds no longer, as another has taken them since; they are left to it.
        """
        lost = set()
        for name in names:
            try:
                document, etag = read_json(self._store, self._key(name))
                if document["owner"] != self._owner or document["state"] == "done":
                    lost.add(name)
                    continue
                note = {} if notes is None else notes.get(name, {})
                self._write(name, {**document, **note, "expires_s": self._clock() + self._lease_s}, etag)
            except (ConflictError, NotFoundError):
                lost.add(name)
        return frozenset(lost)

    def give_up(self, names: Iterable[Name]) -> None:
        """Let go of leases that this process holds, so that another need not wait for their end."""
        for name in names:
            try:
                document, etag = read_json(self._store, self._key(name))
                if document["owner"] == self._owner and document["state"] != "done":
                    self._write(name, {**document, "expires_s": 0.0}, etag)
            except (ConflictError, NotFoundError):
                continue

    def mark_done(self, name: Name, said: Mapping[str, Any]) -> None:
        """Mark a part as done and say something of it; whoever comes first says so, and all say the same."""

        def change(document: Document) -> Document:
            return document if document["state"] == "done" else {**document, "state": "done", **said}

        self._remember(name, update_json(self._store, self._key(name), change))

    def look(self, names: Iterable[Name]) -> Mapping[Name, Document]:
        """Read the leases of parts that are not known to be done; without those that nobody has taken yet."""
        found = {}
        for name in names:
            if name not in self._done:
                try:
                    found[name] = read_json(self._store, self._key(name))[0]
                except NotFoundError:
                    continue
                self._remember(name, found[name])
        return found

    def _try(self, name: Name) -> bool:
        now = self._clock()
        fresh = {"owner": self._owner, "state": "taken", "start_s": now, "expires_s": now + self._lease_s}
        try:
            create_json(self._store, self._key(name), fresh)
        except AlreadyExistsError:
            pass
        else:
            return True
        try:
            document, etag = read_json(self._store, self._key(name))
            self._remember(name, document)
            if document["state"] == "done" or document["expires_s"] > now:
                return False
            # One that was given up in order has no end to come.
            takes = document.get("takes", 0) + (document["expires_s"] > 0)
            if self._most_takes is not None and takes > self._most_takes:
                self._write(name, {**document, "takes": 0, "expires_s": 0.0}, etag)
                raise InternalError(
                    f"{self._key(name)} was taken up {takes} times by processes that died; it is given up. See why "
                    "they die, and ask for it again"
                )
            self._write(name, {**fresh, "takes": takes}, etag)
        except (ConflictError, NotFoundError):
            return False  # another one was faster
        return True

    def _remember(self, name: Name, document: Document) -> None:
        if document["state"] == "done":
            self._done[name] = document
        else:
            self._taken_until[name] = float(document["expires_s"])

    def _write(self, name: Name, document: Document, etag: str) -> None:
        self._store.put(self._key(name), encode_json(document), if_match=etag)

    def _key(self, name: Name) -> str:
        return f"{self._folder}/{name}.json"
