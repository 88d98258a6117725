"""Graphs and features over HTTP: made, followed, fetched, pruned, steered, deleted."""

import re
import secrets
import uuid
from collections.abc import Iterator
from typing import Any

from google.longrunning import operations_pb2
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from weft.attribution.v1 import messages_pb2, service_pb2
from weft.features.v1 import service_pb2 as features_pb2
from weft.training.v1 import service_pb2 as training_pb2
from weft_common.errors import FailedPreconditionError, InvalidArgumentError
from weft_common.resource_names import check_id
from weft_console.api.requests import page_of, path_id, read_field, read_json
from weft_console.api.targets import read_targets
from weft_console.events import Event, event_stream
from weft_console.messages import to_json
from weft_console.peers import STREAM_S, Peers

__all__ = ["ROUTES", "new_graph_id"]


def new_graph_id(prompt: str) -> str:
    """Return an id that a person recognises: the prompt's first words, and four random digits against clashes."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].strip("-")
    return f"{words or 'graph'}-{secrets.token_hex(2)}"


async def list_graphs(request: Request) -> Response:
    peers: Peers = request.app.state.peers
    return JSONResponse(to_json(await peers.attribution.ListGraphs(service_pb2.ListGraphsRequest(**page_of(request)))))


async def create_graph(request: Request) -> Response:
    peers: Peers = request.app.state.peers
    body = await read_json(request)
    prompt = read_field(body, "prompt", str)
    if not prompt.strip():
        raise InvalidArgumentError(
            "the prompt is empty; write the text that the model shall go on from", field="prompt"
        )
    max_logits = read_field(body, "max_logits", int, 0)
    if not 0 <= max_logits <= 100:
        raise InvalidArgumentError(f"max_logits is {max_logits}; give a number from 1 to 100", field="max_logits")
    spec = messages_pb2.GraphSpec(
        model=read_field(body, "model", str),
        transcoder=read_field(body, "transcoder", str),
        prompt=prompt,
        max_logits=max_logits,
        node_threshold=read_field(body, "node_threshold", float, 0.0),
        edge_threshold=read_field(body, "edge_threshold", float, 0.0),
        targets=read_targets(read_field(body, "targets", list, [])),
    )
    if body.get("position") is not None:
        position = read_field(body, "position", int)
        if not 0 <= position < 2**31:
            raise InvalidArgumentError(f"position is {position}; give a number from 0 on", field="position")
        spec.position = position
    graph_id = new_graph_id(prompt)
    await peers.attribution.CreateGraph(
        service_pb2.CreateGraphRequest(graph_id=graph_id, spec=spec, request_id=str(uuid.uuid4()))
    )
    return JSONResponse({"graph_id": graph_id}, 201)


async def get_graph(request: Request) -> Response:
    return JSONResponse(to_json(await _fetch(request)))


async def get_graph_json(request: Request) -> Response:
    """The file as the attribution service wrote it, or pruned to other thresholds."""
    peers: Peers = request.app.state.peers
    name = path_id(request, "graphs")
    node, edge = request.query_params.get("node_threshold"), request.query_params.get("edge_threshold")
    if node is None and edge is None:
        graph = await _fetch(request)
    else:
        graph = await peers.attribution.PruneGraph(
            service_pb2.PruneGraphRequest(
                name=name,
                node_threshold=_share(node, "node_threshold", 0.8),
                edge_threshold=_share(edge, "edge_threshold", 0.98),
            ),
            timeout=peers.slow_s,
        )
    if not graph.json:
        raise FailedPreconditionError(f"{name} has no file yet; wait until its state is succeeded")
    return Response(graph.json, media_type="application/json")


async def watch_graph(request: Request) -> StreamingResponse:
    peers: Peers = request.app.state.peers
    call = peers.attribution.WatchGraph(
        service_pb2.WatchGraphRequest(name=path_id(request, "graphs")), timeout=STREAM_S
    )
    return event_stream(call, _graph_events, request.app.state.stopping)


async def cancel_graph(request: Request) -> Response:
    peers: Peers = request.app.state.peers
    graph = await _fetch(request)
    if not graph.operation:
        raise FailedPreconditionError(f"{graph.name} has no work to cancel")
    await peers.attribution_operations.CancelOperation(operations_pb2.CancelOperationRequest(name=graph.operation))
    return JSONResponse({})


async def delete_graph(request: Request) -> Response:
    peers: Peers = request.app.state.peers
    await peers.attribution.DeleteGraph(service_pb2.DeleteGraphRequest(name=path_id(request, "graphs")))
    return JSONResponse({})


async def intervene(request: Request) -> Response:
    peers: Peers = request.app.state.peers
    body = await read_json(request)
    changes = [_intervention(change) for change in read_field(body, "interventions", list)]
    result = await peers.attribution.Intervene(
        service_pb2.InterveneRequest(name=path_id(request, "graphs"), interventions=changes), timeout=peers.slow_s
    )
    return JSONResponse(to_json(result))


async def get_feature(request: Request) -> Response:
    peers: Peers = request.app.state.peers
    feature = check_id(request.path_params["feature"], field="feature")
    name = f"{path_id(request, 'transcoders')}/features/{feature}"
    return JSONResponse(to_json(await peers.features.GetFeature(features_pb2.GetFeatureRequest(name=name))))


async def list_transcoders(request: Request) -> Response:
    peers: Peers = request.app.state.peers
    answer = await peers.training.ListTranscoders(training_pb2.ListTranscodersRequest(**page_of(request)))
    return JSONResponse(to_json(answer))


async def _fetch(request: Request) -> messages_pb2.Graph:
    peers: Peers = request.app.state.peers
    return await peers.attribution.GetGraph(service_pb2.GetGraphRequest(name=path_id(request, "graphs")))


def _graph_events(response: service_pb2.WatchGraphResponse) -> Iterator[Event]:
    if response.HasField("metadata"):
        yield Event("progress", to_json(response.metadata.progress))
    if response.HasField("graph"):
        # The file itself is fetched apart: this only says that there is a newer one.
        yield Event("graph", {**to_json(response.graph), "has_json": bool(response.graph.json)})


def _intervention(change: Any) -> messages_pb2.FeatureIntervention:
    if not isinstance(change, dict):
        raise InvalidArgumentError("an intervention is no object; give {node_id, factor} or {node_id, value}")
    node_id = read_field(change, "node_id", str)
    if "value" in change:
        return messages_pb2.FeatureIntervention(node_id=node_id, value=read_field(change, "value", float))
    return messages_pb2.FeatureIntervention(node_id=node_id, factor=read_field(change, "factor", float))


def _share(text: str | None, name: str, default: float) -> float:
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise InvalidArgumentError(f"{name} is {text[:40]!r}; give a share above 0 and at most 1", field=name)
    return value


ROUTES = [
    Route("/api/graphs", list_graphs),
    Route("/api/graphs", create_graph, methods=["POST"]),
    Route("/api/graphs/{id}", get_graph),
    Route("/api/graphs/{id}", delete_graph, methods=["DELETE"]),
    Route("/api/graphs/{id}/json", get_graph_json),
    Route("/api/graphs/{id}/events", watch_graph),
    Route("/api/graphs/{id}/cancel", cancel_graph, methods=["POST"]),
    Route("/api/graphs/{id}/interventions", intervene, methods=["POST"]),
    Route("/api/transcoders", list_transcoders),
    Route("/api/transcoders/{id}/features/{feature}", get_feature),
]
