"""
Who reads a dataset, so that nobody deletes it meanwhile.

    datasets/{id}/holds/{n}.json       one call of HoldDataset: who holds it, and which dataset of that name

A holder writes its hold first and looks at the manifest afterwards; where a deletion has announced itself there
(`closing`) it takes the announcement back. Whoever deletes announces it first, looks for holds afterwards, and turns
the manifest to `deleting` only if its own announcement still stands (deletion.py). So either the deletion finds the
hold, or its announcement is gone, or the holder finds a dataset that is being deleted and is told so. No clock takes
part.

Every call has an object of its own: one that is refused takes away its own hold and nobody else's. A hold whose holder
has ended counts no more; a run that goes on later holds anew first.
"""

import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from weft_cache.core import layout
from weft_cache.core.catalog import Catalog, not_found
from weft_cache.core.ports import Holders
from weft_cache.core.records import State
from weft_common.errors import DataLossError, InvalidArgumentError, NotFoundError
from weft_common.resource_names import parse_name
from weft_store.documents import create_json, read_json, update_json

__all__ = ["HOLDERS", "PINS", "Hold", "Holds"]

HOLDERS = ("runs", "operations", "pins")
PINS = "pins/"


@dataclass(frozen=True, slots=True)
class Hold:
    """
    One hold.

    Args:
        key: Of its object.
        holder: `runs/{run}`, `operations/{operation}` or `pins/{pin}`.
        create_time: When it was asked for.
        dataset_create_time: Of the dataset that it is about, RFC 3339: another one of that name is not held by it.
    """

    key: str
    holder: str
    create_time: datetime
    dataset_create_time: str


class Holds:
    """Takes, lists and gives up holds."""

    def __init__(self, catalog: Catalog, holders: Holders) -> None:
        self._catalog = catalog
        self._store = catalog.store
        self._holders = holders

    def hold(self, dataset_id: str, holder: str) -> Hold:
        """
        Keep a dataset from being deleted until its holder has ended or releases it.

        Raises:
            NotFoundError: no such dataset, or it is being deleted already.
            InvalidArgumentError: the holder is of none of the kinds that hold.
        """
        _check_holder(holder)
        made = self._catalog.manifest(dataset_id)["create_time"]
        hold = Hold(layout.hold_key(dataset_id, secrets.token_hex(8)), holder, self._catalog.clock(), made)
        document = {"create_time": hold.create_time.isoformat(), "dataset_create_time": made, "holder": holder}
        create_json(self._store, hold.key, document)

        def kept(manifest: dict[str, Any]) -> dict[str, Any]:
            if manifest["state"] == State.DELETING or manifest["create_time"] != made:
                raise not_found(dataset_id)
            return {key: value for key, value in manifest.items() if key != "closing"}

        try:
            update_json(self._store, layout.manifest_key(dataset_id), kept)
        except NotFoundError as error:
            self._store.delete(hold.key)
            raise not_found(dataset_id) from error
        return hold

    def release(self, dataset_id: str, holder: str) -> None:
        """Give up all holds of a holder. NotFoundError: no such dataset."""
        _check_holder(holder)
        self._catalog.manifest(dataset_id)
        for hold in self.all(dataset_id):
            if hold.holder == holder:
                self._store.delete(hold.key)

    def live(self, dataset_id: str, dataset_create_time: str) -> list[Hold]:
        """The first hold of each holder that has not ended, by holder."""
        first: dict[str, Hold] = {}
        for hold in self.all(dataset_id):
            there = first.get(hold.holder)
            if hold.dataset_create_time == dataset_create_time and (
                there is None or hold.create_time < there.create_time
            ):
                first[hold.holder] = hold
        return [first[holder] for holder in sorted(first) if not self._ended(holder)]

    def dead(self, dataset_id: str, dataset_create_time: str) -> list[Hold]:
        """Holds that count no more: their objects are only in the way."""
        found = self.all(dataset_id)
        ended = {holder: self._ended(holder) for holder in {hold.holder for hold in found}}
        return [hold for hold in found if ended[hold.holder] or hold.dataset_create_time != dataset_create_time]

    def all(self, dataset_id: str) -> list[Hold]:
        """Every hold that lies under a dataset's name, of holders that have ended too."""
        found = []
        for item in self._store.list(layout.holds_prefix(dataset_id)):
            try:
                document, _ = read_json(self._store, item.key)
            except NotFoundError:
                continue  # Given up since the listing.
            created = datetime.fromisoformat(document["create_time"])
            found.append(Hold(item.key, document["holder"], created, document["dataset_create_time"]))
        return found

    def _ended(self, holder: str) -> bool:
        try:
            return not holder.startswith(PINS) and self._holders.ended(holder)
        except DataLossError:
            return False


def _check_holder(holder: str) -> None:
    kind = holder.partition("/")[0]
    if kind not in HOLDERS:
        raise InvalidArgumentError(
            f"holder is {holder[:100]!r}, expected runs/{{run}}, operations/{{operation}} or pins/{{pin}}",
            field="holder",
        )
    parse_name(holder, kind, field="holder")
