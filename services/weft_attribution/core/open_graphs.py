"""Finished graphs, mapped and ready to be read: the last ones asked for stay open."""

import tempfile
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from weft_attribution.core.graph_json import node_id
from weft_attribution.core.influence import compute_influence
from weft_attribution.core.ports import Token
from weft_attribution.core.records import GraphRequest, edges_key, graph_key, request_key
from weft_attribution.core.whole_graph import WholeGraph, open_graph
from weft_common.errors import DataLossError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from weft_store.documents import read_json
from weft_store.port import ObjectStore

__all__ = ["OpenGraph", "OpenGraphs", "read_request"]

Array = npt.NDArray[Any]
_OPEN_GRAPHS = 2


@dataclass(frozen=True)
class OpenGraph:
    """
    A finished graph.

    Args:
        request: How it was asked for.
        model_revision: Revision of the model that it was made with.
        graph: Its nodes and edges.
        influence: Of each node, without its own weight.
        sums: Sum of each row's absolute edges.
    """

    request: GraphRequest
    model_revision: str
    graph: WholeGraph
    influence: Array
    sums: Array

    @cached_property
    def node_of(self) -> Mapping[str, int]:
        """Number of every node by its id."""
        return {node_id(self.graph.nodes, node): node for node in range(self.graph.edges.table.num_nodes)}

    def node(self, name: str, field: str) -> int:
        """
        The number of a node.

        Raises:
            InvalidArgumentError: The graph has no such node.
        """
        if name not in self.node_of:
            raise InvalidArgumentError(
                f"{name[:100]!r} is no node of graphs/{self.request.graph_id}; "
                "give a node_id of its JSON, such as 12_345_4 for a feature: layer, feature, position",
                field=field,
            )
        return self.node_of[name]


def read_request(store: ObjectStore, graph_id: str) -> GraphRequest:
    """
    How a graph was asked for.

    Raises:
        NotFoundError: There is no such graph.
        DataLossError: Its record is damaged.
    """
    try:
        document, _ = read_json(store, request_key(graph_id))
    except NotFoundError:
        raise NotFoundError(f"no graph graphs/{graph_id}; list the graphs to see those that there are") from None
    try:
        return GraphRequest.from_json(document)
    except (KeyError, TypeError) as error:
        raise DataLossError(
            f"the record of graphs/{graph_id} is damaged; delete the graph and make it again"
        ) from error


class OpenGraphs:
    """
    The graphs in a bucket.

    Args:
        store: The bucket.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._open: OrderedDict[tuple[str, str], OpenGraph] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, graph_id: str) -> OpenGraph:
        """
        Open a finished graph; blocks.

        Raises:
            NotFoundError: There is no such graph.
            FailedPreconditionError: It is not finished.
        """
        request = read_request(self._store, graph_id)
        try:
            mark = self._store.info(graph_key(graph_id)).etag
        except NotFoundError:
            raise FailedPreconditionError(
                f"graphs/{graph_id} is not complete; wait for its operation to succeed"
            ) from None
        key = (graph_id, mark)
        with self._lock:
            if key not in self._open:
                self._open[key] = self._read(request)
                while len(self._open) > _OPEN_GRAPHS:
                    self._open.popitem(last=False)
            self._open.move_to_end(key)
            return self._open[key]

    def _read(self, request: GraphRequest) -> OpenGraph:
        document, _ = read_json(self._store, graph_key(request.graph_id))
        tokens = tuple(Token(i, text) for i, text in document["tokens"])
        logits = tuple(Token(i, text) for i, text in document["logits"])
        # The file may go as soon as it is mapped.
        with tempfile.TemporaryDirectory(prefix="weft-open-") as folder:
            path = Path(folder) / "edges.safetensors"
            self._store.get_to_file(edges_key(request.graph_id), path)
            graph = open_graph(path, document["num_layers"], tokens, logits, tuple(document["probabilities"]))
        influence, sums = compute_influence(graph.edges, graph.logit_weights)
        return OpenGraph(request, document["model_revision"], graph, np.asarray(influence), np.asarray(sums))
