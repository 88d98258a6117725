"""Labels and scores by a language model over HTTP: asked for, followed, cancelled, gone on with."""

import uuid
from collections.abc import Iterator

from google.longrunning import operations_pb2
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from weft.features.v1 import interpretation_pb2, jobs_pb2, labels_pb2
from weft_common.errors import InvalidArgumentError
from weft_common.resource_names import check_id
from weft_console.api.requests import page_of, path_id, read_field, read_json
from weft_console.api.scopes import read_scope
from weft_console.events import Event, event_stream
from weft_console.messages import to_json
from weft_console.peers import STREAM_S, Peers

__all__ = ["ROUTES"]

_KINDS = {
    "detection": labels_pb2.SCORE_KIND_DETECTION,
    "fuzzing": labels_pb2.SCORE_KIND_FUZZING,
    "intruder": labels_pb2.SCORE_KIND_INTRUDER,
    "embedding": labels_pb2.SCORE_KIND_EMBEDDING,
}


async def get_interpreter(request: Request) -> Response:
    peers: Peers = request.app.state.peers
    return JSONResponse(to_json(await peers.jobs.GetInterpreter(jobs_pb2.GetInterpreterRequest())))


async def list_interpretations(request: Request) -> Response:
    peers: Peers = request.app.state.peers
    transcoder = request.query_params.get("transcoder", "")
    parent = f"transcoders/{check_id(transcoder, field='transcoder')}" if transcoder else ""
    asked = jobs_pb2.ListInterpretationsRequest(parent=parent, **page_of(request))
    return JSONResponse(to_json(await peers.jobs.ListInterpretations(asked)))


async def start_interpretation(request: Request) -> Response:
    """Explain or score; answers with the operation's id, or with nothing where it was only to be checked."""
    peers: Peers = request.app.state.peers
    body = await read_json(request)
    parent = f"transcoders/{check_id(read_field(body, 'transcoder', str), field='transcoder')}"
    work = read_field(body, "work", str)
    scope = await read_scope(peers, parent, body)
    num_examples = read_field(body, "num_examples", int, 0)
    if not 0 <= num_examples <= 100:
        raise InvalidArgumentError(
            f"num_examples is {num_examples}; give 4 to 100, or 0 for the default", field="num_examples"
        )
    if work == "explain":
        operation = await peers.features.ExplainFeatures(
            interpretation_pb2.ExplainFeaturesRequest(
                parent=parent,
                scope=scope,
                prompt=read_field(body, "prompt", str, ""),
                num_examples=num_examples,
                request_id=str(uuid.uuid4()),
            ),
            timeout=peers.slow_s,
        )
    elif work == "score":
        kinds = read_field(body, "kinds", list, [])
        if not all(isinstance(kind, str) and kind in _KINDS for kind in kinds):
            raise InvalidArgumentError(f"kinds has none of {', '.join(_KINDS)}", field="kinds")
        operation = await peers.features.ScoreFeatures(
            interpretation_pb2.ScoreFeaturesRequest(
                parent=parent,
                scope=scope,
                kinds=[_KINDS[kind] for kind in kinds],
                num_examples=num_examples,
                control=body.get("control") is True,
                request_id=str(uuid.uuid4()),
            ),
            timeout=peers.slow_s,
        )
    else:
        raise InvalidArgumentError(f"work is {work[:40]!r}; give explain or score", field="work")
    return JSONResponse({"id": _id_of(operation)}, 201)


async def get_interpretation(request: Request) -> Response:
    peers: Peers = request.app.state.peers
    asked = jobs_pb2.GetInterpretationRequest(operation=path_id(request, "operations"))
    return JSONResponse(to_json(await peers.jobs.GetInterpretation(asked)))


async def watch_interpretation(request: Request) -> StreamingResponse:
    peers: Peers = request.app.state.peers
    call = peers.jobs.WatchInterpretation(
        jobs_pb2.WatchInterpretationRequest(operation=path_id(request, "operations")), timeout=STREAM_S
    )
    return event_stream(call, _events, request.app.state.stopping)


async def list_features(request: Request) -> Response:
    """What came of features, from a place on; `outcome` may stand several times."""
    peers: Peers = request.app.state.peers
    first = request.query_params.get("from", "0")
    if not first.isdecimal() or len(first) > 7:
        raise InvalidArgumentError(f"from is {first[:40]!r}; give a place, 0 or more", field="from")
    names = request.query_params.getlist("outcome")
    known = jobs_pb2.FeatureOutcome.keys()
    outcomes = [f"FEATURE_OUTCOME_{name.upper()}" for name in names]
    if not all(outcome in known for outcome in outcomes):
        raise InvalidArgumentError("outcome is none that there is; see FeatureOutcome", field="outcome")
    asked = jobs_pb2.ListInterpretedFeaturesRequest(
        operation=path_id(request, "operations"),
        outcomes=[jobs_pb2.FeatureOutcome.Value(outcome) for outcome in outcomes],
        first_position=int(first),
        **page_of(request),
    )
    return JSONResponse(to_json(await peers.jobs.ListInterpretedFeatures(asked)))


async def cancel_interpretation(request: Request) -> Response:
    peers: Peers = request.app.state.peers
    name = path_id(request, "operations")
    # Other work of the service is cancelled from its own page.
    await peers.jobs.GetInterpretation(jobs_pb2.GetInterpretationRequest(operation=name))
    await peers.attribution_operations.CancelOperation(operations_pb2.CancelOperationRequest(name=name))
    return JSONResponse({})


async def resume_interpretation(request: Request) -> Response:
    """The same again with a budget of its own; answers with the new operation's id."""
    peers: Peers = request.app.state.peers
    body = await read_json(request)
    limits = {name: read_field(body, name, int, 0) for name in ("max_calls", "max_tokens")}
    for name, value in limits.items():
        if not 0 <= value < 1 << 53:
            raise InvalidArgumentError(f"{name} is {value}; give a whole number from 0", field=name)
    asked = jobs_pb2.ResumeInterpretationRequest(
        operation=path_id(request, "operations"), request_id=str(uuid.uuid4()), **limits
    )
    operation = await peers.jobs.ResumeInterpretation(asked, timeout=peers.slow_s)
    return JSONResponse({"id": _id_of(operation)}, 201)


def _events(response: jobs_pb2.WatchInterpretationResponse) -> Iterator[Event]:
    yield Event("interpretation", to_json(response.interpretation))


def _id_of(operation: operations_pb2.Operation) -> str:
    return str(operation.name).removeprefix("operations/")


ROUTES = [
    Route("/api/interpreter", get_interpreter),
    Route("/api/interpretations", list_interpretations),
    Route("/api/interpretations", start_interpretation, methods=["POST"]),
    Route("/api/interpretations/{id}", get_interpretation),
    Route("/api/interpretations/{id}/events", watch_interpretation),
    Route("/api/interpretations/{id}/features", list_features),
    Route("/api/interpretations/{id}/cancel", cancel_interpretation, methods=["POST"]),
    Route("/api/interpretations/{id}/resume", resume_interpretation, methods=["POST"]),
]
