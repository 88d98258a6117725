"""
What a page of labels holds, and where it lies.

    features/{transcoder}/labels/{layer}/{page}.json                     the last revisions of 256 features each
    features/{transcoder}/label-revisions/{layer}-{index}/{number}.json  what no longer fits in there, one revision each
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weft_attribution.core.labels import Label, Origin, Place, latest, standing
from weft_common.errors import DataLossError
from weft_store.documents import Document

__all__ = [
    "FEATURES_A_PAGE",
    "LabelledFeature",
    "etag_of",
    "feature_id",
    "history_folder",
    "labelled",
    "labels_folder",
    "one_a_page",
    "page_key",
    "page_labels",
    "with_revisions",
]

FEATURES_A_PAGE = 256


@dataclass(frozen=True)
class LabelledFeature:
    """
    What a page holds of one feature.

    Args:
        place: The feature.
        revisions: The last ones, oldest first, and those that stand.
    """

    place: Place
    revisions: tuple[Label, ...]

    @property
    def etag(self) -> str:
        """Changes with everything that is said."""
        return etag_of(self.revisions[::-1])

    def label(self, origin: Origin | None = None) -> Label | None:
        """What stands, or what one origin says."""
        return standing(self.revisions) if origin is None else latest(self.revisions, origin)


def etag_of(history: Sequence[Label]) -> str:
    """The etag of a feature by what was said of it, newest first; `0` where nothing ever was."""
    return str(history[0].revision) if history else "0"


def feature_id(place: Place) -> str:
    """
    A feature as it is named in keys and messages.

    >>> feature_id(Place(3, 14))
    '3-14'
    """
    return f"{place.layer}-{place.index}"


def labels_folder(transcoder: str) -> str:
    """Where the pages of a transcoder lie."""
    return f"features/{transcoder}/labels/"


def page_key(transcoder: str, place: Place) -> str:
    """
    The page that a feature is in.

    >>> page_key("t", Place(3, 700))
    'features/t/labels/0003/0000002.json'
    """
    # Padded, so that keys are in the order of numbers.
    return f"{labels_folder(transcoder)}{place.layer:04d}/{place.index // FEATURES_A_PAGE:07d}.json"


def history_folder(transcoder: str, place: Place) -> str:
    """Where revisions of a feature lie that its page has no place for."""
    return f"features/{transcoder}/label-revisions/{feature_id(place)}/"


def one_a_page(places: Iterable[Place]) -> list[Place]:
    """One feature for each page that some features are in, by layer and index."""
    return list({page_key("", place): place for place in sorted(places)}.values())


def page_labels(key: str, document: Document) -> list[LabelledFeature]:
    """Everything in a page, by place. DataLossError."""
    layer, features = key.split("/")[-2], document.get("features")
    if not isinstance(features, dict) or not layer.isdecimal() or not all(index.isdecimal() for index in features):
        raise DataLossError(f"object {key!r} is no page of labels; restore it from a backup")
    try:
        return [labelled(document, place) for place in sorted(Place(int(layer), int(index)) for index in features)]
    except DataLossError as error:
        raise DataLossError(f"{error.message} (object {key!r})") from None


def labelled(document: Mapping[str, Any], place: Place) -> LabelledFeature:
    """What a page has of one feature; without revisions where nothing was ever said. DataLossError."""
    features = document.get("features", {})
    revisions = features.get(str(place.index), ()) if isinstance(features, dict) else None
    if not isinstance(revisions, list | tuple):
        raise DataLossError(
            f"the page with the labels of feature {feature_id(place)} is damaged; restore it from a backup"
        )
    return LabelledFeature(place, tuple(Label.from_json(place, each) for each in revisions))


def with_revisions(document: Mapping[str, Any], place: Place, revisions: Sequence[Label]) -> Document:
    """The page with these revisions of one feature."""
    features = {**document.get("features", {}), str(place.index): [each.to_json() for each in revisions]}
    return {**document, "features": features}
