"""Training runs over HTTP: listed, followed live, paused, resumed, cancelled."""

from collections.abc import Iterator

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from weft.training.v1 import service_pb2
from weft_common.errors import InvalidArgumentError
from weft_console.api.requests import page_of, path_id
from weft_console.events import Event, event_stream
from weft_console.messages import to_json
from weft_console.peers import STREAM_S, Peers

__all__ = ["ROUTES"]


async def list_runs(request: Request) -> Response:
    peers: Peers = request.app.state.peers
    return JSONResponse(to_json(await peers.training.ListRuns(service_pb2.ListRunsRequest(**page_of(request)))))


async def get_run(request: Request) -> Response:
    peers: Peers = request.app.state.peers
    return JSONResponse(to_json(await peers.training.GetRun(service_pb2.GetRunRequest(name=path_id(request, "runs")))))


async def watch_run(request: Request) -> StreamingResponse:
    """Metrics from a step on: the browser's own last one where it comes back after a lost connection."""
    peers: Peers = request.app.state.peers
    text = request.headers.get("last-event-id") or request.query_params.get("after_step", "0")
    if not text.isdecimal() or len(text) > 18:
        raise InvalidArgumentError(f"after_step is {text[:40]!r}; give a step, 0 or more", field="after_step")
    call = peers.training.WatchRun(
        service_pb2.WatchRunRequest(name=path_id(request, "runs"), after_step=int(text)), timeout=STREAM_S
    )
    return event_stream(call, _run_events, request.app.state.stopping)


async def list_checkpoints(request: Request) -> Response:
    """Complete checkpoints, newest first, with what EvaluateCheckpoint measured of them."""
    peers: Peers = request.app.state.peers
    asked = service_pb2.ListCheckpointsRequest(run=path_id(request, "runs"), **page_of(request))
    return JSONResponse(to_json(await peers.training.ListCheckpoints(asked)))


async def pause_run(request: Request) -> Response:
    peers: Peers = request.app.state.peers
    return JSONResponse(
        to_json(await peers.training.PauseRun(service_pb2.PauseRunRequest(name=path_id(request, "runs"))))
    )


async def resume_run(request: Request) -> Response:
    peers: Peers = request.app.state.peers
    answer = await peers.training.ResumeRun(service_pb2.ResumeRunRequest(name=path_id(request, "runs")))
    return JSONResponse(to_json(answer))


async def cancel_run(request: Request) -> Response:
    peers: Peers = request.app.state.peers
    answer = await peers.training.CancelRun(service_pb2.CancelRunRequest(name=path_id(request, "runs")))
    return JSONResponse(to_json(answer))


def _run_events(response: service_pb2.WatchRunResponse) -> Iterator[Event]:
    kind = response.WhichOneof("event")
    if kind == "metrics":
        yield Event("metrics", to_json(response.metrics), id=str(response.metrics.step))
    elif kind == "evaluation":
        yield Event("evaluation", to_json(response.evaluation))
    elif kind == "run":
        yield Event("run", to_json(response.run))


ROUTES = [
    Route("/api/runs", list_runs),
    Route("/api/runs/{id}", get_run),
    Route("/api/runs/{id}/events", watch_run),
    Route("/api/runs/{id}/checkpoints", list_checkpoints),
    Route("/api/runs/{id}/pause", pause_run, methods=["POST"]),
    Route("/api/runs/{id}/resume", resume_run, methods=["POST"]),
    Route("/api/runs/{id}/cancel", cancel_run, methods=["POST"]),
]
