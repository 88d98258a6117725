"""The features that are nodes of a finished graph, each once, the most influential first."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from weft_attribution.core.open_graphs import OpenGraphs

__all__ = ["GraphFeature", "graph_features"]


@dataclass(frozen=True)
class GraphFeature:
    """A feature, where it is a node, how active it is there, and the influence of its nodes together."""

    layer: int
    index: int
    positions: tuple[int, ...]
    activations: tuple[float, ...]
    influence: float


def graph_features(opened: OpenGraphs, graph_id: str) -> tuple[str, Sequence[GraphFeature]]:
    """
    Group a graph's feature nodes; blocks.

    Returns:
        The transcoder's id, and the features.

    Raises:
        NotFoundError, FailedPreconditionError: It is not there or not finished.
    """
    found = opened.open(graph_id)
    nodes, count = found.graph.nodes, found.graph.edges.table.num_features
    layer_N, index_N = np.asarray(nodes.layer_N)[:count], np.asarray(nodes.index_N)[:count]
    position_N, activation_N = np.asarray(nodes.position_N)[:count], np.asarray(nodes.activation_N)[:count]
    order = np.lexsort((position_N, index_N, layer_N))
    keys = np.stack([layer_N[order], index_N[order]], axis=1)
    first = np.flatnonzero(np.concatenate([[True], (keys[1:] != keys[:-1]).any(axis=1)])) if count else keys[:0, 0]
    features = [
        GraphFeature(
            int(layer_N[group[0]]),
            int(index_N[group[0]]),
            tuple(position_N[group].tolist()),
            tuple(activation_N[group].tolist()),
            float(found.influence[group].sum()),
        )
        for group in np.split(order, first[1:])
        if len(group)
    ]
    features.sort(key=lambda feature: (-feature.influence, feature.layer, feature.index))
    return found.request.settings.transcoder, features
