"""Which features are interpreted, and in which order."""

from collections.abc import Sequence

from weft_attribution.core.labels import Place
from weft_attribution.core.open_graphs import read_request
from weft_attribution.core.records import graph_key
from weft_common.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from weft_store.documents import read_json
from weft_store.port import ObjectStore

__all__ = ["features_of_graph", "in_order"]


def features_of_graph(store: ObjectStore, graph_id: str, transcoder: str) -> list[Place]:
    """
    The features of a pruned graph, the most influential first; blocks.

    Raises:
        NotFoundError: There is no such graph.
        FailedPreconditionError: It is not finished.
        InvalidArgumentError: It is of another transcoder.
    """
    made_with = read_request(store, graph_id).settings.transcoder.removeprefix("transcoders/")
    if made_with != transcoder:
        raise InvalidArgumentError(
            f"graphs/{graph_id} is of transcoders/{made_with}, not of transcoders/{transcoder}; leave it out",
            field="scope.graphs",
        )
    try:
        document, _ = read_json(store, graph_key(graph_id))
    except NotFoundError:
        raise FailedPreconditionError(f"graphs/{graph_id} is not complete; wait for its operation to succeed") from None
    # A node's `influence` is the share that it holds together with all stronger ones: low comes first.
    nodes = sorted(
        (node["influence"], Place(int(node["layer"]), int(node["feature_index"])))
        for node in document["json"]["nodes"]
        if node["feature_type"] == "cross layer transcoder"
    )
    return list(dict.fromkeys(place for _, place in nodes))


def in_order(first: Sequence[Sequence[Place]], then: Sequence[Place], most: int) -> list[Place]:
    """
    Every feature once: those of the graphs by turns, then the others.

    >>> in_order([[Place(0, 1), Place(0, 2)], [Place(1, 1)]], [Place(0, 2), Place(2, 2)], 3)
    [Place(layer=0, index=1), Place(layer=1, index=1), Place(layer=0, index=2)]
    """
    longest = max(map(len, first), default=0)
    turns = [graph[at] for at in range(longest) for graph in first if at < len(graph)]
    found = list(dict.fromkeys([*turns, *then]))
    return found[:most] if most else found
