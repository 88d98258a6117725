"""Datasets over HTTP: what there is, and how well it is compressed."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from weft.cache.v1 import messages_pb2, service_pb2
from weft_console.api.requests import page_of, path_id
from weft_console.messages import to_json
from weft_console.peers import Peers

__all__ = ["ROUTES"]


async def list_datasets(request: Request) -> Response:
    peers: Peers = request.app.state.peers
    answer = await peers.cache.ListDatasets(service_pb2.ListDatasetsRequest(**page_of(request)))
    return JSONResponse(
        {"datasets": [_summary(one) for one in answer.datasets], "next_page_token": answer.next_page_token}
    )


async def get_dataset(request: Request) -> Response:
    peers: Peers = request.app.state.peers
    return JSONResponse(
        _summary(await peers.cache.GetDataset(service_pb2.GetDatasetRequest(name=path_id(request, "datasets"))))
    )


async def get_dataset_stats(request: Request) -> Response:
    peers: Peers = request.app.state.peers
    answer = await peers.cache.GetStats(service_pb2.GetStatsRequest(name=path_id(request, "datasets")))
    return JSONResponse(to_json(answer))


def _summary(dataset: messages_pb2.Dataset) -> dict[str, Any]:
    """A dataset without its shards and means, which are long and which the page does not show."""
    short = messages_pb2.Dataset()
    short.CopyFrom(dataset)
    short.ClearField("shards")
    short.ClearField("statistics")
    summary = to_json(short)
    del summary["shards"], summary["statistics"]
    return {**summary, "num_shards": len(dataset.shards)}


ROUTES = [
    Route("/api/datasets", list_datasets),
    Route("/api/datasets/{id}", get_dataset),
    Route("/api/datasets/{id}/stats", get_dataset_stats),
]
