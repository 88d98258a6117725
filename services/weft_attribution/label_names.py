"""Names of labels and their features as they stand in requests."""

import re

from weft_attribution.core.labels import Place
from weft_common.errors import InvalidArgumentError
from weft_common.resource_names import parse_child_name

__all__ = ["feature_of", "label_name", "label_of", "place_of"]

_PLACE = re.compile(r"(\d{1,4})-(\d{1,9})")
_SUFFIX = "/label"


def place_of(text: str, field: str) -> Place:
    """
    A feature within its transcoder, `{layer}-{index}`.

    >>> place_of("12-345", "feature")
    Place(layer=12, index=345)
    """
    place = _PLACE.fullmatch(text)
    if place is None:
        raise InvalidArgumentError(
            f"{field} ends in {text[:100]!r}; a feature is {{layer}}-{{index}}, for example 12-345", field=field
        )
    return Place(int(place[1]), int(place[2]))


def feature_of(name: str, field: str = "name") -> tuple[str, Place]:
    """
    Transcoder and place within `transcoders/{transcoder}/features/{layer}-{index}`.

    >>> feature_of("transcoders/t/features/1-2")
    ('t', Place(layer=1, index=2))
    """
    transcoder, feature = parse_child_name(name, "transcoders", "features", field=field)
    return transcoder, place_of(feature, field)


def label_of(name: str, field: str = "name") -> tuple[str, Place]:
    """The same within the name of the feature's label, which ends in `/label`."""
    if not name.endswith(_SUFFIX):
        raise InvalidArgumentError(
            f"{field} is {name[:100]!r}; the name of a label is "
            "transcoders/{transcoder}/features/{layer}-{index}/label",
            field=field,
        )
    return feature_of(name.removesuffix(_SUFFIX), field)


def label_name(transcoder: str, place: Place) -> str:
    """
    The name of a feature's label.

    >>> label_name("t", Place(1, 2))
    'transcoders/t/features/1-2/label'
    """
    return f"transcoders/{transcoder}/features/{place.layer}-{place.index}{_SUFFIX}"
