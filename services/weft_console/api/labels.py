"""Labels over HTTP: what stands and what was said before; said anew, withdrawn, or said of many at once."""

import asyncio
from typing import Any

import grpc
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from weft.features.v1 import labels_pb2
from weft_common.client import error_from_rpc
from weft_common.errors import ConflictError, InvalidArgumentError, NotFoundError
from weft_console.api.features import feature_name
from weft_console.api.requests import path_id, read_field, read_json
from weft_console.messages import to_json
from weft_console.peers import Peers
from weft_console.problems import peer_error

__all__ = ["ROUTES"]

# More is what `weft labels import` is for.
_MAX_AT_ONCE = 200
_CALLS_AT_ONCE = 4
_MAX_REVISIONS = 200


async def get_label(request: Request) -> Response:
    """The label that stands, or null; every revision, newest first; and the etag that a change is to follow."""
    peers: Peers = request.app.state.peers
    name = f"{feature_name(request)}/label"
    return JSONResponse(await _label(peers, name))


async def set_label(request: Request) -> Response:
    """Say something as a person; with `etag`, only if nobody else said anything meanwhile."""
    peers: Peers = request.app.state.peers
    body = await read_json(request)
    name = f"{feature_name(request)}/label"
    await peers.labels.UpdateLabel(
        labels_pb2.UpdateLabelRequest(
            label=_said(name, read_field(body, "text", str), read_field(body, "author", str, "")),
            etag=read_field(body, "etag", str, ""),
        )
    )
    return JSONResponse(await _label(peers, name))


async def withdraw_label(request: Request) -> Response:
    """Withdraw a person's label, or a model's; the history keeps it."""
    peers: Peers = request.app.state.peers
    name = f"{feature_name(request)}/label"
    origin = request.query_params.get("origin", "human")
    if origin not in ("human", "model"):
        raise InvalidArgumentError(f"origin is {origin[:40]!r}; give human or model", field="origin")
    await peers.labels.DeleteLabel(
        labels_pb2.DeleteLabelRequest(
            name=name,
            origin=labels_pb2.LABEL_ORIGIN_HUMAN if origin == "human" else labels_pb2.LABEL_ORIGIN_MODEL,
            etag=request.query_params.get("etag", ""),
        )
    )
    return JSONResponse(await _label(peers, name))


async def set_labels(request: Request) -> Response:
    """
    Say the same of many features.

    Each comes with the text that its writer saw; where another one stands by now, nothing is written and it is told in
    `conflicts`. What could not be written is told in `failures`, unless that is all of them: then the first is raised.
    """
    peers: Peers = request.app.state.peers
    body = await read_json(request)
    text, author = read_field(body, "text", str), read_field(body, "author", str, "")
    asked = read_field(body, "features", list)
    if not 1 <= len(asked) <= _MAX_AT_ONCE:
        raise InvalidArgumentError(
            f"features has {len(asked)} of them; label 1 to {_MAX_AT_ONCE} at once, and more with `weft labels import`",
            field="features",
        )
    transcoder = path_id(request, "transcoders")
    places = [_seen(each) for each in asked]
    slots = asyncio.Semaphore(_CALLS_AT_ONCE)

    async def say(layer: int, index: int, seen: str) -> str | None:
        """Label one; return what stands there instead, or None."""
        name = f"{transcoder}/features/{layer}-{index}/label"
        async with slots:
            there = await _standing(peers, name)
            if (there.text if there else "") == seen:
                # 0 asks for there to be none, whatever was withdrawn before.
                etag = there.etag if there else "0"
                try:
                    asked = labels_pb2.UpdateLabelRequest(label=_said(name, text, author), etag=etag)
                    await peers.labels.UpdateLabel(asked)
                except grpc.RpcError as error:
                    if not isinstance(error_from_rpc(error), ConflictError):
                        raise
                    there = await _standing(peers, name)
                else:
                    return None
            if there and there.origin == labels_pb2.LABEL_ORIGIN_HUMAN and there.text == text.strip():
                # It was written by a call whose answer was lost, or somebody said the same.
                return None
            return there.text if there else ""

    told = await asyncio.gather(*(say(*place) for place in places), return_exceptions=True)
    failures = []
    for (layer, index, _), failed in zip(places, told, strict=True):
        if isinstance(failed, grpc.RpcError):
            failures.append({"layer": layer, "index": index, "detail": peer_error(failed).message})
        if isinstance(failed, BaseException) and (not isinstance(failed, grpc.RpcError) or len(failures) == len(told)):
            raise failed
    conflicts = [
        {"layer": layer, "index": index, "text": there}
        for (layer, index, _), there in zip(places, told, strict=True)
        if isinstance(there, str)
    ]
    num_labelled = len(places) - len(conflicts) - len(failures)
    return JSONResponse({"num_labelled": num_labelled, "conflicts": conflicts, "failures": failures})


async def _label(peers: Peers, name: str) -> dict[str, Any]:
    # In this order: where nothing stands, the etag is from before that was seen.
    asked = labels_pb2.ListLabelRevisionsRequest(name=name, page_size=_MAX_REVISIONS)
    history = await peers.labels.ListLabelRevisions(asked)
    standing = await _standing(peers, name)
    return {
        "label": to_json(standing) if standing else None,
        "revisions": [to_json(revision) for revision in history.revisions],
        "has_more": bool(history.next_page_token),
        "etag": standing.etag if standing else history.etag,
    }


async def _standing(peers: Peers, name: str) -> labels_pb2.Label | None:
    try:
        return await peers.labels.GetLabel(labels_pb2.GetLabelRequest(name=name))
    except grpc.RpcError as error:
        if not isinstance(error_from_rpc(error), NotFoundError):
            raise
        return None


def _said(name: str, text: str, author: str) -> labels_pb2.Label:
    return labels_pb2.Label(name=name, text=text, author=author, origin=labels_pb2.LABEL_ORIGIN_HUMAN)


def _seen(feature: Any) -> tuple[int, int, str]:
    if not isinstance(feature, dict):
        raise InvalidArgumentError("features has something that is no object; give {layer, index, seen}")
    place = read_field(feature, "layer", int), read_field(feature, "index", int)
    if min(place) < 0:
        raise InvalidArgumentError(f"there is no feature {place[0]}-{place[1]}; both count from 0", field="features")
    return *place, read_field(feature, "seen", str, "")


ROUTES = [
    Route("/api/features/{id}/labels", set_labels, methods=["POST"]),
    Route("/api/features/{id}/{feature}/label", get_label),
    Route("/api/features/{id}/{feature}/label", set_label, methods=["POST"]),
    Route("/api/features/{id}/{feature}/label", withdraw_label, methods=["DELETE"]),
]
