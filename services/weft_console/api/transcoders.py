"""Transcoders over HTTP: how good one is, where it comes from, and the indexes of its features."""

from typing import Any

from google.longrunning import operations_pb2
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from weft.features.v1 import index_pb2, jobs_pb2
from weft.training.v1 import service_pb2
from weft_common.errors import InvalidArgumentError, NotFoundError
from weft_common.resource_names import check_id
from weft_console.api.requests import path_id, read_field, read_json
from weft_console.messages import to_json
from weft_console.peers import Peers

__all__ = ["ROUTES"]

_INDEXES = 100
_INT_SETTINGS = ("num_top", "num_sampled", "num_quantiles", "window_tokens", "num_neighbours", "coactivation_tokens")


async def get_transcoder(request: Request) -> Response:
    peers: Peers = request.app.state.peers
    asked = service_pb2.GetTranscoderRequest(name=path_id(request, "transcoders"))
    return JSONResponse(to_json(await peers.training.GetTranscoder(asked)))


async def list_indexes(request: Request) -> Response:
    """Whole indexes, and work on those that are not, newest first."""
    peers: Peers = request.app.state.peers
    parent = path_id(request, "transcoders")
    whole = await peers.features.ListFeatureIndexes(
        index_pb2.ListFeatureIndexesRequest(parent=parent, page_size=_INDEXES)
    )
    jobs = await peers.jobs.ListIndexJobs(jobs_pb2.ListIndexJobsRequest(parent=parent, page_size=_INDEXES))
    return JSONResponse(
        {
            # Where bins begin and end fills more than everything else; a feature's own page asks for them.
            "indexes": [{**to_json(index), "histogram_edges": []} for index in whole.indexes],
            "jobs": [to_json(job) for job in jobs.jobs],
        }
    )


async def start_index(request: Request) -> Response:
    peers: Peers = request.app.state.peers
    parent, body = path_id(request, "transcoders"), await read_json(request)
    asked = index_pb2.IndexFeaturesRequest(
        transcoder=parent,
        index_id=check_id(read_field(body, "index_id", str), field="index_id"),
        dataset=f"datasets/{check_id(read_field(body, 'dataset', str), field='dataset')}",
        held_out=body.get("held_out") is True,
        max_tokens=_number(body, "max_tokens"),
        settings=index_pb2.FeatureIndexSettings(
            dense_share=read_field(body, "dense_share", float, 0.0),
            **{name: _number(body, name) for name in _INT_SETTINGS},
        ),
    )
    await peers.features.IndexFeatures(asked, timeout=peers.slow_s)
    return JSONResponse({}, 201)


async def cancel_index(request: Request) -> Response:
    peers: Peers = request.app.state.peers
    job = await _job(request)
    await peers.attribution_operations.CancelOperation(operations_pb2.CancelOperationRequest(name=job.operation))
    return JSONResponse({})


async def resume_index(request: Request) -> Response:
    """Ask for the same index again, which goes on from what is stored."""
    peers: Peers = request.app.state.peers
    job = await _job(request)
    await peers.features.IndexFeatures(job.request, timeout=peers.slow_s)
    return JSONResponse({}, 201)


async def _job(request: Request) -> jobs_pb2.IndexJob:
    peers: Peers = request.app.state.peers
    parent = path_id(request, "transcoders")
    name = f"{parent}/indexes/{check_id(request.path_params['index'], field='index')}"
    answer = await peers.jobs.ListIndexJobs(jobs_pb2.ListIndexJobsRequest(parent=parent, page_size=1000))
    for job in answer.jobs:
        if job.index == name:
            return job
    raise NotFoundError(f"nothing works on {name}: it is whole, or was never asked for")


def _number(body: dict[str, Any], name: str) -> int:
    value = read_field(body, name, int, 0)
    if not 0 <= value < 1 << 31:
        raise InvalidArgumentError(f"{name} is {value}; give a whole number from 0", field=name)
    return value


ROUTES = [
    Route("/api/transcoders/{id}", get_transcoder),
    Route("/api/transcoders/{id}/indexes", list_indexes),
    Route("/api/transcoders/{id}/indexes", start_index, methods=["POST"]),
    Route("/api/transcoders/{id}/indexes/{index}/cancel", cancel_index, methods=["POST"]),
    Route("/api/transcoders/{id}/indexes/{index}/resume", resume_index, methods=["POST"]),
]
