"""Features over HTTP: found by figures, words and tokens, briefly described, and the graphs that they stand in."""

import asyncio
import math
from typing import Any

from google.protobuf import field_mask_pb2
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from weft.features.v1 import graphs_pb2, index_pb2, queries_pb2, service_pb2
from weft_common.errors import InvalidArgumentError
from weft_common.resource_names import check_id
from weft_console.api.requests import page_of, path_id
from weft_console.messages import to_json
from weft_console.peers import Peers

__all__ = ["ROUTES", "feature_name"]

_ROW = ("name", "layer", "index", "statistics", "label")
# Nothing that has to be read of each.
_BRIEF = ["name", "layer", "index", "label"]
_MAX_BRIEFS = 40
_MAX_LAYERS = 1000
_MAX_SKIP = 2**31 - 1
_STATES = {
    "active": index_pb2.FEATURE_STATE_ACTIVE,
    "dead": index_pb2.FEATURE_STATE_DEAD,
    "dense": index_pb2.FEATURE_STATE_DENSE,
}
_LABEL_STATES = {
    "": queries_pb2.LABEL_STATE_UNSPECIFIED,
    "labelled": queries_pb2.LABEL_STATE_LABELLED,
    "unlabelled": queries_pb2.LABEL_STATE_UNLABELLED,
    "human": queries_pb2.LABEL_STATE_HUMAN,
    "model": queries_pb2.LABEL_STATE_MODEL,
}


async def list_features(request: Request) -> Response:
    """A page of features from any place on; with `label` or `token` those that are found by it."""
    peers: Peers = request.app.state.peers
    query = request.query_params
    label, token = query.get("label", ""), query.get("token", "")
    if label and token:
        raise InvalidArgumentError("there are a label and a token; search for one of them", field="token")
    asked: dict[str, Any] = {
        "parent": path_id(request, "transcoders"),
        "filter": _filter(query),
        "order_by": query.get("order_by", ""),
        "skip": _whole(query.get("skip", "0"), "skip", _MAX_SKIP),
        **page_of(request),
    }
    if not label and not token:
        listed = await peers.features.ListFeatures(queries_pb2.ListFeaturesRequest(**asked))
        rows, total, token_ids = [_row(feature) for feature in listed.features], listed.total_size, []
    else:
        asked |= {"label": label} if label else {"token": token}
        found = await peers.features.SearchFeatures(queries_pb2.SearchFeaturesRequest(**asked))
        rows = [{**_row(each.feature), "num_stretches": each.num_stretches} for each in found.features]
        total, token_ids = found.total_size, list(found.token_ids)
    return JSONResponse({"features": rows, "total_size": total, "token_ids": token_ids})


async def get_index(request: Request) -> Response:
    """The index that answers, or null where the transcoder has none."""
    peers: Peers = request.app.state.peers
    asked = index_pb2.ListFeatureIndexesRequest(parent=path_id(request, "transcoders"), page_size=1)
    answer = await peers.features.ListFeatureIndexes(asked)
    return JSONResponse({"index": to_json(answer.indexes[0]) if answer.indexes else None})


async def list_briefs(request: Request) -> Response:
    """Labels of a few features, as neighbours are shown with."""
    peers: Peers = request.app.state.peers
    features = [feature for feature in request.query_params.get("features", "").split(",") if feature]
    if not 1 <= len(features) <= _MAX_BRIEFS:
        raise InvalidArgumentError(
            f"features has {len(features)} of them; give 1 to {_MAX_BRIEFS} as LAYER-INDEX, with commas between",
            field="features",
        )
    transcoder = path_id(request, "transcoders")
    mask = field_mask_pb2.FieldMask(paths=_BRIEF)
    found = await asyncio.gather(
        *(
            peers.features.GetFeature(
                service_pb2.GetFeatureRequest(
                    name=f"{transcoder}/features/{check_id(feature, field='features')}", read_mask=mask
                )
            )
            for feature in dict.fromkeys(features)
        )
    )
    return JSONResponse({"features": [_row(feature) for feature in found]})


async def get_details(request: Request) -> Response:
    """What is only worked out on demand: logits by target layer, and stretches where the feature is quiet."""
    peers: Peers = request.app.state.peers
    mask = field_mask_pb2.FieldMask(paths=["target_logits", "quiet_examples"])
    asked = service_pb2.GetFeatureRequest(name=feature_name(request), read_mask=mask)
    found = to_json(await peers.features.GetFeature(asked, timeout=peers.slow_s))
    return JSONResponse({name: found[name] for name in mask.paths})


async def list_graphs(request: Request) -> Response:
    """Graphs that the feature is a node of, newest first; a page may have none and not be the last."""
    peers: Peers = request.app.state.peers
    asked = graphs_pb2.ListFeatureGraphsRequest(parent=feature_name(request), **page_of(request))
    return JSONResponse(to_json(await peers.features.ListFeatureGraphs(asked, timeout=peers.slow_s)))


def feature_name(request: Request) -> str:
    """Return the feature that the path's `{id}` and `{feature}` stand for."""
    return f"{path_id(request, 'transcoders')}/features/{check_id(request.path_params['feature'], field='feature')}"


def _row(feature: service_pb2.Feature) -> dict[str, Any]:
    """What a list shows of a feature."""
    whole = to_json(feature)
    return {name: whole[name] for name in _ROW}


def _filter(query: QueryParams) -> queries_pb2.FeatureFilter:
    """Which features are wanted."""
    layers = [_whole(text, "layers", 10**6) for text in query.get("layers", "").split(",") if text]
    if len(layers) > _MAX_LAYERS:
        raise InvalidArgumentError(f"layers has {len(layers)} of them; give {_MAX_LAYERS} at most", field="layers")
    label_state = query.get("label_state", "")
    if label_state not in _LABEL_STATES:
        raise InvalidArgumentError(
            f"label_state is {label_state[:40]!r}; give one of {', '.join(filter(None, _LABEL_STATES))}",
            field="label_state",
        )
    states = [state for state in query.get("states", "").split(",") if state]
    if wrong := [state for state in states if state not in _STATES]:
        raise InvalidArgumentError(f"states has {wrong[0][:40]!r}; give some of {', '.join(_STATES)}", field="states")
    return queries_pb2.FeatureFilter(
        layers=layers,
        states=[_STATES[state] for state in states],
        density=_bounds(query, "density"),
        max_activation=_bounds(query, "max_activation"),
        decoder_norm=_bounds(query, "decoder_norm"),
        label_state=_LABEL_STATES[label_state],
        score_kind=query.get("score_kind", ""),
        score=_bounds(query, "score"),
    )


def _bounds(query: QueryParams, name: str) -> queries_pb2.Bounds:
    """The bounds `{name}_min` and `{name}_max`; what is absent bounds nothing."""
    bounds = queries_pb2.Bounds()
    for end in ("min", "max"):
        text = query.get(f"{name}_{end}", "")
        if text:
            setattr(bounds, end, _number(text, f"{name}_{end}"))
    return bounds


def _number(text: str, field: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InvalidArgumentError(f"{field} is {text[:40]!r}; give a number", field=field)
    return value


def _whole(text: str, field: str, most: int) -> int:
    if not text.isdecimal() or len(text) > 10 or int(text) > most:
        raise InvalidArgumentError(f"{field} has {text[:40]!r}; give whole numbers from 0 to {most}", field=field)
    return int(text)


ROUTES = [
    Route("/api/features/{id}", list_features),
    Route("/api/features/{id}/index", get_index),
    Route("/api/features/{id}/briefs", list_briefs),
    Route("/api/features/{id}/{feature}/details", get_details),
    Route("/api/features/{id}/{feature}/graphs", list_graphs),
]
