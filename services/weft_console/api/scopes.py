"""Which features interpretation shall be about, as the page sends it, and how much may be spent on them."""

import math
import re
from collections.abc import Sequence
from typing import Any

from google.protobuf import field_mask_pb2

from weft.features.v1 import index_pb2, interpretation_pb2, queries_pb2
from weft_common.errors import InvalidArgumentError
from weft_common.resource_names import check_id
from weft_console.api.requests import read_field
from weft_console.peers import Peers

__all__ = ["read_scope"]

_PLACE = re.compile(r"\d{1,4}-\d{1,9}")
_MAX_FOUND = 10_000
_MAX_NAMED = 5_000
_PAGE = 1_000
_BOUNDS = ("density", "max_activation", "decoder_norm", "score")
_STATES = {"active": index_pb2.FEATURE_STATE_ACTIVE, "dead": index_pb2.FEATURE_STATE_DEAD,
           "dense": index_pb2.FEATURE_STATE_DENSE}  # fmt: skip
_LABELS = {"": queries_pb2.LABEL_STATE_UNSPECIFIED, "labelled": queries_pb2.LABEL_STATE_LABELLED,
           "unlabelled": queries_pb2.LABEL_STATE_UNLABELLED, "human": queries_pb2.LABEL_STATE_HUMAN,
           "model": queries_pb2.LABEL_STATE_MODEL}  # fmt: skip


async def read_scope(peers: Peers, parent: str, body: dict[str, Any]) -> interpretation_pb2.InterpretationScope:
    """
    Return what a request is about; features that a filter takes are looked up.

    Args:
        peers: The other services.
        parent: `transcoders/{transcoder}`.
        body: Has `graphs`, ids; `features`, a list of `{layer}-{index}`; or `filter`, an object as FeatureFilter with
            `order_by`. Besides `max_features`, `max_calls`, `max_tokens`.

    Raises:
        InvalidArgumentError: A field is of another form, or the filter takes nothing.
    """
    most = _number(body, "max_features")
    scope = interpretation_pb2.InterpretationScope(
        graphs=[f"graphs/{check_id(graph, field='graphs')}" for graph in _texts(body, "graphs")],
        features=[f"{parent}/features/{_place(each)}" for each in _texts(body, "features")],
        max_features=most,
        max_calls=_number(body, "max_calls"),
        max_tokens=_number(body, "max_tokens"),
    )
    if isinstance(body.get("filter"), dict):
        found = await _found(peers, parent, body["filter"], min(most or _MAX_FOUND, _MAX_FOUND))
        if not found:
            raise InvalidArgumentError("no feature is like that; widen the filter", field="filter")
        scope.features.extend(found)
    return scope


async def _found(peers: Peers, parent: str, wanted: dict[str, Any], most: int) -> Sequence[str]:
    asked = queries_pb2.ListFeaturesRequest(
        parent=parent,
        filter=_filter(wanted),
        order_by=read_field(wanted, "order_by", str, "max_activation desc"),
        page_size=min(most, _PAGE),
        read_mask=field_mask_pb2.FieldMask(paths=["name"]),
    )
    names: list[str] = []
    while len(names) < most:
        page = await peers.features.ListFeatures(asked, timeout=peers.slow_s)
        names += [feature.name for feature in page.features]
        asked.page_token = page.next_page_token
        if not asked.page_token:
            break
    return names[:most]


def _filter(wanted: dict[str, Any]) -> queries_pb2.FeatureFilter:
    states = _texts(wanted, "states")
    label = read_field(wanted, "label_state", str, "")
    if label not in _LABELS or not all(state in _STATES for state in states):
        raise InvalidArgumentError(
            f"label_state is one of {', '.join(filter(None, _LABELS))}, states are of {', '.join(_STATES)}",
            field="filter",
        )
    layers = read_field(wanted, "layers", list, [])
    if not all(isinstance(layer, int) and not isinstance(layer, bool) and 0 <= layer < 10_000 for layer in layers):
        raise InvalidArgumentError("layers has something that is no layer; give numbers from 0", field="layers")
    found = queries_pb2.FeatureFilter(
        layers=layers,
        states=[_STATES[state] for state in states],
        label_state=_LABELS[label],
        score_kind=read_field(wanted, "score_kind", str, ""),
    )
    for name in _BOUNDS:
        bounds = wanted.get(name)
        if bounds is not None:
            getattr(found, name).CopyFrom(_bounds(bounds, name))
    return found


def _bounds(bounds: Any, name: str) -> queries_pb2.Bounds:
    if not isinstance(bounds, dict) or not set(bounds) <= {"min", "max"}:
        raise InvalidArgumentError(f"{name} is no bounds; give {{min, max}} or one of both", field=name)
    values = {each: read_field(bounds, each, float) for each in bounds}
    if not all(map(math.isfinite, values.values())):
        raise InvalidArgumentError(f"{name} has a bound that is no number", field=name)
    return queries_pb2.Bounds(**values)


def _texts(body: dict[str, Any], name: str) -> list[str]:
    values = read_field(body, name, list, [])
    if len(values) > _MAX_NAMED or not all(isinstance(each, str) for each in values):
        raise InvalidArgumentError(f"{name} is no list of at most {_MAX_NAMED} texts", field=name)
    return values


def _place(text: str) -> str:
    if not _PLACE.fullmatch(text):
        raise InvalidArgumentError(
            f"{text[:40]!r} is no feature; a feature is {{layer}}-{{index}}, for example 12-345", field="features"
        )
    return text


def _number(body: dict[str, Any], name: str) -> int:
    value = read_field(body, name, int, 0)
    if not 0 <= value < 1 << 53:
        raise InvalidArgumentError(f"{name} is {value}; give a whole number from 0", field=name)
    return value
