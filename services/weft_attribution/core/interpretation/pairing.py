"""
Which label each feature is tested with, and for a control another feature's.

Both are written down when the work begins, as `features/{transcoder}/interpretations/{operation}/labels.json`, and read
back when it is taken up again: a label that is said meanwhile would pair others, whose tests would be paid for anew.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from weft_attribution.core.interpretation.examples import seeded
from weft_attribution.core.interpretation.results import work_folder
from weft_attribution.core.labels import Label, Place
from weft_common.errors import DataLossError, NotFoundError
from weft_store.documents import Document, keep_json, read_json
from weft_store.port import ObjectStore

__all__ = ["KeptTests", "Tested", "paired", "shuffled"]


@dataclass(frozen=True)
class Tested:
    """
    What one feature is tested with.

    Args:
        text: Its label.
        revision: The label's revision.
        control: The feature whose label is tested beside; None for none.
    """

    text: str
    revision: int
    control: Place | None = None


def shuffled(texts: Mapping[Place, str]) -> dict[Place, Place]:
    """Another feature for each feature, always the same; none where all labels have the same words."""
    order = sorted(texts)
    seeded("control", *order).shuffle(order)
    words = [texts[place].casefold() for place in order]
    # The next one with other words, found from the end on: of many that say the same each is looked at once.
    following = [-1] * len(order)
    for at in range(2 * len(order) - 2, -1, -1):
        here, after = at % len(order), (at + 1) % len(order)
        following[here] = after if words[after] != words[here] else following[after]
    return {place: order[other] for place, other in zip(order, following, strict=True) if other >= 0}


def paired(labels: Mapping[Place, Label], *, control: bool) -> dict[Place, Tested]:
    """Every label, with another one's feature where a control is asked for."""
    others = shuffled({place: label.text for place, label in labels.items()}) if control else {}
    return {place: Tested(label.text, label.revision, others.get(place)) for place, label in labels.items()}


class KeptTests:
    """
    The labels of one operation. Calls block.

    Args:
        store: The bucket.
        transcoder: Id of the transcoder.
        operation_id: Id of the operation.
    """

    def __init__(self, store: ObjectStore, transcoder: str, operation_id: str) -> None:
        self._store = store
        self._key = f"{work_folder(transcoder, operation_id)}labels.json"

    def read(self) -> dict[Place, Tested] | None:
        """What was written down; None where nothing was. DataLossError where it is damaged."""
        try:
            document, _ = read_json(self._store, self._key)
        except NotFoundError:
            return None
        return self._tests(document)

    def keep(self, tested: Mapping[Place, Tested]) -> Mapping[Place, Tested]:
        """Write it down; where another process was faster, its list stays and is returned."""
        labels = {_name(place): [each.text, each.revision, _name(each.control)] for place, each in tested.items()}
        return self._tests(keep_json(self._store, self._key, {"labels": labels}))

    def _tests(self, document: Document) -> dict[Place, Tested]:
        try:
            return {
                _place(name): Tested(str(text), int(revision), None if control is None else _place(control))
                for name, (text, revision, control) in document["labels"].items()
            }
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataLossError(f"object {self._key!r} is no list of labels ({error!r}); delete it") from None


def _name(place: Place | None) -> str | None:
    return None if place is None else f"{place.layer}-{place.index}"


def _place(name: str) -> Place:
    layer, _, index = name.partition("-")
    return Place(int(layer), int(index))
