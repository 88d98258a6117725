"""What a graph shall explain, as the page sends it."""

from collections.abc import Sequence
from typing import Any

from weft.attribution.v1 import targets_pb2
from weft_common.errors import InvalidArgumentError
from weft_console.api.requests import read_field

__all__ = ["read_targets"]

_MAX_TARGETS = 100


def read_targets(items: Sequence[Any]) -> list[targets_pb2.Target]:
    """
    Return the targets of a request.

    Args:
        items: Objects: `{text}` or `{token_id}` for a token; `{plus, minus}` for a difference, each a text or an id;
            `{layer, index}` for a feature.

    Raises:
        InvalidArgumentError: There are too many, or one is none of these.
    """
    if len(items) > _MAX_TARGETS:
        raise InvalidArgumentError(f"there are {len(items)} targets; give at most {_MAX_TARGETS}", field="targets")
    return [_target(item, place) for place, item in enumerate(items)]


def _target(item: Any, place: int) -> targets_pb2.Target:
    keys = set(item) if isinstance(item, dict) else set()
    if keys == {"text"}:
        return targets_pb2.Target(text=_text(item, "text"))
    if keys == {"token_id"}:
        return targets_pb2.Target(token_id=_id(item["token_id"], "token_id"))
    if keys == {"layer", "index"}:
        feature = targets_pb2.FeatureOfLayer(layer=_id(item["layer"], "layer"), index=_id(item["index"], "index"))
        return targets_pb2.Target(feature=feature)
    if keys == {"plus", "minus"}:
        difference = targets_pb2.TokenDifference()
        if isinstance(item["plus"], str):
            difference.text = _text(item, "plus")
        else:
            difference.token_id = _id(item["plus"], "plus")
        if isinstance(item["minus"], str):
            difference.minus_text = _text(item, "minus")
        else:
            difference.minus_token_id = _id(item["minus"], "minus")
        return targets_pb2.Target(difference=difference)
    raise InvalidArgumentError(
        f"target {place} is none that the page knows; give {{text}}, {{token_id}}, {{plus, minus}} or {{layer, index}}",
        field="targets",
    )


def _text(item: dict[str, Any], name: str) -> str:
    text = read_field(item, name, str)
    if not text:
        raise InvalidArgumentError(f"a target's {name} is empty; write a token, often with a space first", field=name)
    return text


def _id(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise InvalidArgumentError(f"{name} is {str(value)[:40]!r}; give a whole number from 0 on", field=name)
    return value
