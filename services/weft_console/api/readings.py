"""
Questions to finished graphs over HTTP: scores of a part, paths, heads of an edge and why they attend, a summary, two
side by side.
"""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from weft.attribution.v1 import attention_pb2, reading_pb2
from weft_common.errors import InvalidArgumentError
from weft_common.resource_names import check_id
from weft_console.api.requests import path_id, read_field, read_json
from weft_console.messages import to_json
from weft_console.peers import Peers

__all__ = ["ROUTES"]

_LIKENESS = {
    "both": reading_pb2.LIKENESS_BOTH,
    "decoder": reading_pb2.LIKENESS_DECODER,
    "graph": reading_pb2.LIKENESS_GRAPH,
}
# What a person reads of a comparison.
_COMPARED_NODES = 60
_COMPARED_EDGES = 40
_HEAD_PARTS = 20
_SCORE_PAIRS = 12


async def score(request: Request) -> Response:
    peers: Peers = request.app.state.peers
    node_ids = read_field(await read_json(request), "node_ids", list)
    if not all(isinstance(node, str) for node in node_ids):
        raise InvalidArgumentError("node_ids has something that is no text; give ids of nodes", field="node_ids")
    asked = reading_pb2.ScoreSubgraphRequest(name=path_id(request, "graphs"), node_ids=node_ids)
    return JSONResponse(to_json(await peers.attribution.ScoreSubgraph(asked, timeout=peers.slow_s)))


async def paths(request: Request) -> Response:
    peers: Peers = request.app.state.peers
    asked = reading_pb2.FindPathsRequest(
        name=path_id(request, "graphs"),
        source_node_id=request.query_params.get("source", ""),
        target_node_id=request.query_params.get("target", ""),
        num_paths=_number(request, "num_paths", 100),
    )
    return JSONResponse(to_json(await peers.attribution.FindPaths(asked, timeout=peers.slow_s)))


async def heads(request: Request) -> Response:
    peers: Peers = request.app.state.peers
    asked = attention_pb2.SplitEdgeRequest(
        name=path_id(request, "graphs"),
        source_node_id=request.query_params.get("source", ""),
        target_node_id=request.query_params.get("target", ""),
        max_parts=_HEAD_PARTS,
    )
    return JSONResponse(to_json(await peers.attribution.SplitEdge(asked, timeout=peers.slow_s)))


async def attention(request: Request) -> Response:
    peers: Peers = request.app.state.peers
    asked = attention_pb2.ExplainAttentionRequest(
        name=path_id(request, "graphs"),
        layer=_number(request, "layer", 9999, default=""),
        head=_number(request, "head", 9999, default=""),
        query_position=_number(request, "query", 9999, default=""),
        key_position=_number(request, "key", 9999, default=""),
        max_pairs=_SCORE_PAIRS,
    )
    return JSONResponse(to_json(await peers.attribution.ExplainAttention(asked, timeout=peers.slow_s)))


async def summary(request: Request) -> Response:
    peers: Peers = request.app.state.peers
    likeness = request.query_params.get("likeness", "both")
    if likeness not in _LIKENESS:
        raise InvalidArgumentError(
            f"likeness is {likeness[:40]!r}; give one of {', '.join(_LIKENESS)}", field="likeness"
        )
    asked = reading_pb2.SummarizeGraphRequest(
        name=path_id(request, "graphs"),
        max_supernodes=_number(request, "max_supernodes", 12),
        likeness=_LIKENESS[likeness],
    )
    return JSONResponse(to_json(await peers.attribution.SummarizeGraph(asked, timeout=peers.slow_s)))


async def comparison(request: Request) -> Response:
    peers: Peers = request.app.state.peers
    other = check_id(request.path_params["other"], field="other")
    asked = reading_pb2.CompareGraphsRequest(
        name=path_id(request, "graphs"),
        other=f"graphs/{other}",
        max_nodes=_COMPARED_NODES,
        max_edges=_COMPARED_EDGES,
    )
    return JSONResponse(to_json(await peers.attribution.CompareGraphs(asked, timeout=peers.slow_s)))


def _number(request: Request, name: str, most: int, *, default: str = "0") -> int:
    """Return a number from the query."""
    text = request.query_params.get(name, default)
    if not text.isdecimal() or len(text) > 4 or int(text) > most:
        raise InvalidArgumentError(f"{name} is {text[:40]!r}; give a whole number of at most {most}", field=name)
    return int(text)


ROUTES = [
    Route("/api/graphs/{id}/score", score, methods=["POST"]),
    Route("/api/graphs/{id}/paths", paths),
    Route("/api/graphs/{id}/heads", heads),
    Route("/api/graphs/{id}/attention", attention),
    Route("/api/graphs/{id}/summary", summary),
    Route("/api/graphs/{id}/comparison/{other}", comparison),
]
