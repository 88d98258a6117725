"""
How a dataset goes: announced, looked over for holds, turned, and only then taken away object by object.

`closing` in the manifest is an announcement, which has a token of its own: readers do not care about it, a new hold
takes it back, and another deletion puts its own in its place. The manifest turns to `deleting` only while the very same
announcement stands, see holds.py. From then on nothing brings the dataset back: a deletion that was cut short is
finished by the next. A crash before that leaves the dataset as it was.
"""

import secrets
from collections.abc import Callable
from typing import Any

from weft_cache.core import layout
from weft_cache.core.catalog import Catalog, not_found
from weft_cache.core.holds import Hold, Holds
from weft_cache.core.records import State
from weft_common.errors import AlreadyExistsError, ConflictError, FailedPreconditionError, NotFoundError
from weft_common.resource_names import check_id
from weft_store.documents import create_json, read_json, update_json

__all__ = ["Deletion", "without_announcement"]

_ATTEMPTS = 5
_Manifest = dict[str, Any]


class _OvertakenError(Exception):
    """A hold, or another deletion, took the announcement away."""


class Deletion:
    """Deletes datasets that nobody holds."""

    def __init__(self, catalog: Catalog, holds: Holds) -> None:
        self._catalog = catalog
        self._holds = holds
        self._store = catalog.store

    def delete(self, dataset_id: str, still: Callable[[_Manifest], bool] = lambda manifest: True) -> None:
        """
        Delete a dataset; one that is being deleted already is taken away to the end.

        Args:
            dataset_id: Which one.
            still: Asked with the manifest when the deletion is announced and when it turns: False leaves the dataset.

        Raises:
            NotFoundError: no such dataset.
            FailedPreconditionError: somebody holds it, whom the message names.
            ConflictError: it was held and released, or changed, again and again meanwhile.
        """
        check_id(dataset_id, field="name")
        for _ in range(_ATTEMPTS):
            try:
                manifest = self._turned(dataset_id, still)
            except _OvertakenError:
                continue
            except NotFoundError as error:
                raise not_found(dataset_id) from error
            self._take_away(dataset_id, manifest)
            return
        raise ConflictError(f"datasets/{dataset_id} is being held and changed by others; delete it again later")

    def clear_leftovers(self, dataset_id: str) -> int:
        """
        Take away what lies under the name of a dataset that is gone, and finish a deletion that was cut short.

        Returns:
            How many objects there were; 0 where the name stands for a dataset.
        """
        manifest: _Manifest = {"closing": secrets.token_hex(8), "create_time": "", "state": State.DELETING.value}
        try:
            create_json(self._store, layout.manifest_key(dataset_id), manifest)
        except AlreadyExistsError:
            try:
                manifest, _ = read_json(self._store, layout.manifest_key(dataset_id))
            except NotFoundError:
                return 0
        return self._take_away(dataset_id, manifest) if manifest["state"] == State.DELETING else 0

    def _turned(self, dataset_id: str, still: Callable[[_Manifest], bool]) -> _Manifest:
        """Turn the manifest to `deleting`."""
        token = secrets.token_hex(8)
        key = layout.manifest_key(dataset_id)

        def announced(manifest: _Manifest) -> _Manifest:
            if manifest["state"] == State.DELETING:
                return manifest
            if not still(without_announcement(manifest)):
                raise _changed(dataset_id)
            return {**manifest, "closing": token}

        manifest = update_json(self._store, key, announced)
        if manifest["state"] == State.DELETING:
            return manifest
        held = self._holds.live(dataset_id, manifest["create_time"])
        if held:
            update_json(self._store, key, lambda there: _taken_back(there, token))
            raise _held(dataset_id, held)

        def turned(there: _Manifest) -> _Manifest:
            if there.get("closing") != token:
                raise _OvertakenError
            if not still(without_announcement(there)):
                raise _changed(dataset_id)
            return {**there, "state": State.DELETING.value}

        return update_json(self._store, key, turned)

    def _take_away(self, dataset_id: str, manifest: _Manifest) -> int:
        """Delete the objects, the manifest last, for as long as it is this deletion's."""
        key = layout.manifest_key(dataset_id)
        # Listed as a whole while nothing can be made under this name: another deletion may be done before this one is,
        # and what is made then must not be in the list.
        keys = [item.key for item in self._store.list(layout.dataset_prefix(dataset_id)) if item.key != key]
        for each in (*keys, key):
            try:
                there, _ = read_json(self._store, key)
            except NotFoundError:
                break
            if there != manifest:
                break
            self._store.delete(each)
        return len(keys)


def without_announcement(manifest: _Manifest) -> _Manifest:
    """A manifest as readers see it."""
    return {key: value for key, value in manifest.items() if key != "closing"}


def _taken_back(manifest: _Manifest, token: str) -> _Manifest:
    return without_announcement(manifest) if manifest.get("closing") == token else manifest


def _held(dataset_id: str, holds: list[Hold]) -> FailedPreconditionError:
    named = ", ".join(hold.holder for hold in holds[:5]) + (f" and {len(holds) - 5} more" if len(holds) > 5 else "")
    return FailedPreconditionError(
        f"datasets/{dataset_id} is held by {named} and was not deleted: wait until they have ended or cancel them; a "
        f"pin is released by `weft datasets release {dataset_id} PIN`",
        metadata={"holder": holds[0].holder},
    )


def _changed(dataset_id: str) -> ConflictError:
    return ConflictError(f"datasets/{dataset_id} has changed since it was looked at; it was not deleted")
