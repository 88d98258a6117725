"""Labels of a graph's features over HTTP, all of them at once."""

from google.protobuf import field_mask_pb2
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from weft.features.v1 import queries_pb2
from weft_console.api.requests import path_id
from weft_console.messages import to_json
from weft_console.peers import Peers

__all__ = ["ROUTES"]

_PAGE = 1_000
# The most influential ones; a graph of more is one that nobody reads to its end.
_MAX_PAGES = 20


async def labels(request: Request) -> Response:
    """The labels that stand, of the features that have one, and how many features were looked at."""
    peers: Peers = request.app.state.peers
    asked = queries_pb2.ListGraphFeaturesRequest(
        graph=path_id(request, "graphs"),
        page_size=_PAGE,
        read_mask=field_mask_pb2.FieldMask(paths=["layer", "index", "label"]),
    )
    found, looked_at, total = [], 0, 0
    for _ in range(_MAX_PAGES):
        page = await peers.features.ListGraphFeatures(asked, timeout=peers.slow_s)
        looked_at, total = looked_at + len(page.features), page.total_size
        for each in page.features:
            if each.feature.HasField("label"):
                told = to_json(each.feature.label)
                found.append({"layer": each.feature.layer, "index": each.feature.index, "label": told})
        asked.page_token = page.next_page_token
        if not asked.page_token:
            break
    return JSONResponse({"labels": found, "num_looked_at": looked_at, "num_features": total})


ROUTES = [Route("/api/graphs/{id}/labels", labels)]
