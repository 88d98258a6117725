"""Changed features over HTTP: what a change does to every node that a graph shows, predicted beside measured."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from weft.attribution.v1 import steering_pb2
from weft_common.errors import InvalidArgumentError
from weft_console.api.requests import path_id, read_field, read_json
from weft_console.messages import to_json
from weft_console.peers import Peers

__all__ = ["ROUTES"]


async def steer(request: Request) -> Response:
    peers: Peers = request.app.state.peers
    body = await read_json(request)
    asked = steering_pb2.SteerRequest(
        name=path_id(request, "graphs"),
        changes=[_change(change) for change in read_field(body, "changes", list)],
        held=_held(body["held"]) if body.get("held") is not None else None,
        freeze_attention=_flag(body, "freeze_attention"),
    )
    return JSONResponse(to_json(await peers.attribution.Steer(asked, timeout=peers.slow_s)))


def _change(change: Any) -> steering_pb2.FeatureChange:
    if not isinstance(change, dict):
        raise InvalidArgumentError(
            "a change is no object; give {node_ids, factor} or {node_ids, value}", field="changes"
        )
    node_ids = read_field(change, "node_ids", list)
    if not all(isinstance(node, str) for node in node_ids):
        raise InvalidArgumentError("node_ids has something that is no text; give ids of nodes", field="node_ids")
    if "value" in change:
        return steering_pb2.FeatureChange(node_ids=node_ids, value=read_field(change, "value", float))
    return steering_pb2.FeatureChange(node_ids=node_ids, factor=read_field(change, "factor", float))


def _held(held: Any) -> steering_pb2.HeldLayers:
    if not isinstance(held, dict):
        raise InvalidArgumentError("held is no object; give {first, last}, two layers", field="held")
    first, last = read_field(held, "first", int), read_field(held, "last", int)
    if not 0 <= first <= last < 1 << 16:
        raise InvalidArgumentError(f"held is layers {first} to {last}; give a first and a last layer", field="held")
    return steering_pb2.HeldLayers(first=first, last=last)


def _flag(body: dict[str, Any], name: str) -> bool:
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise InvalidArgumentError(f"{name} is {repr(value)[:80]}; give true or false", field=name)
    return value


ROUTES = [Route("/api/graphs/{id}/steering", steer, methods=["POST"])]
