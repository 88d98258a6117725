"""
Two graphs of one model and transcoder side by side.

Nodes are the same where they are the same feature, error or token at positions that belong together, or the same logit.
Positions belong together where the prompts' tokens are equal, or where as many of them replace others.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import numpy as np
import numpy.typing as npt

from weft_attribution.core.open_graphs import OpenGraph

__all__ = ["ComparedEdge", "ComparedNode", "Comparison", "align", "compare"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ComparedNode:
    """One node in two graphs: its numbers, -1 where it is not there, and its shares of influence."""

    node: int
    other: int
    influence: float
    other_influence: float


@dataclass(frozen=True)
class ComparedEdge:
    """One edge in two graphs, between places in the list of nodes; weights and shares of influence."""

    source: int
    target: int
    weight: float
    other_weight: float
    influence: float
    other_influence: float


@dataclass(frozen=True)
class Comparison:
    """Two graphs side by side; what differs most comes first."""

    positions: tuple[int, ...]
    overlap: float
    num_common: int
    num_first_only: int
    num_other_only: int
    nodes: tuple[ComparedNode, ...]
    edges: tuple[ComparedEdge, ...]


def align(first: Sequence[int], other: Sequence[int]) -> tuple[int, ...]:
    """
    For each of the first tokens the position that belongs to it among the others, -1 where there is none.

    >>> align([1, 5, 2, 3], [1, 6, 2, 9, 3])
    (0, 1, 2, 4)
    """
    found = [-1] * len(first)
    matcher = SequenceMatcher(None, first, other, autojunk=False)
    for kind, low, high, other_low, other_high in matcher.get_opcodes():
        if kind == "equal" or (kind == "replace" and high - low == other_high - other_low):
            found[low:high] = range(other_low, other_high)
    return tuple(found)


def compare(first: OpenGraph, other: OpenGraph, *, max_nodes: int, max_edges: int) -> Comparison:
    """
    Compare two graphs.

    Args:
        first: A graph.
        other: Another one of the same model and transcoder.
        max_nodes: Most nodes told.
        max_edges: Most edges told.
    """
    positions = align(
        [token.id for token in first.graph.nodes.tokens], [token.id for token in other.graph.nodes.tokens]
    )
    # Positions of the first graph's own, where the other has none for them, stand apart by their sign.
    mine = _keys(first, [to if to >= 0 else -1 - at for at, to in enumerate(positions)])
    theirs = _keys(other, range(len(other.graph.nodes.tokens)))
    keys = [*mine, *(key for key in theirs if key not in mine)]
    node = np.array([mine.get(key, -1) for key in keys])
    opposite = np.array([theirs.get(key, -1) for key in keys])
    share, other_share = _shares(first, node), _shares(other, opposite)
    larger = float(np.maximum(share, other_share).sum())
    order = np.argsort(-np.abs(share - other_share), kind="stable")[:max_nodes]
    is_feature = np.array([key[0] == "feature" for key in keys])  # type: ignore[index]
    return Comparison(
        positions=positions,
        overlap=float(np.minimum(share, other_share).sum()) / larger if larger > 0 else 1.0,
        num_common=int((is_feature & (node >= 0) & (opposite >= 0)).sum()),
        num_first_only=int((is_feature & (opposite < 0)).sum()),
        num_other_only=int((is_feature & (node < 0)).sum()),
        nodes=tuple(
            ComparedNode(int(node[at]), int(opposite[at]), float(share[at]), float(other_share[at])) for at in order
        ),
        edges=_edges(first, other, node[order], opposite[order], max_edges),
    )


def _keys(graph: OpenGraph, positions: Sequence[int]) -> Mapping[Hashable, int]:
    """What a node is, whichever graph it is in, and its number."""
    nodes, table = graph.graph.nodes, graph.graph.edges.table
    place = np.asarray(positions)
    features = zip(
        nodes.layer_N.tolist(), nodes.index_N.tolist(), place[np.asarray(nodes.position_N)].tolist(), strict=True
    )
    keys: list[Hashable] = [("feature", *each) for each in features]
    keys += [("error", layer, int(at)) for layer in range(table.num_layers) for at in place[1:]]
    keys += [("token", int(at)) for at in place]
    keys += [("logit", token.id, token.text) for token in nodes.logits]
    return {key: number for number, key in enumerate(keys)}


def _shares(graph: OpenGraph, nodes: Array) -> Array:
    """Share of the graph's influence that nodes hold, their own weights too; 0 where they are not there."""
    output = graph.influence.copy()
    output[graph.graph.edges.table.logit_start :] += graph.graph.logit_weights
    whole = output.sum()
    return np.where(nodes >= 0, output[nodes], 0.0) / (whole if whole > 0 else 1.0)


def _edges(
    first: OpenGraph, other: OpenGraph, node: Array, opposite: Array, max_edges: int
) -> tuple[ComparedEdge, ...]:
    mine, theirs = _among(first, node), _among(other, opposite)
    found = []
    for source, target in mine.keys() | theirs.keys():
        weight, influence = mine.get((source, target), _NONE)
        other_weight, other_influence = theirs.get((source, target), _NONE)
        found.append(ComparedEdge(source, target, weight, other_weight, influence, other_influence))
    found.sort(key=lambda edge: (-abs(edge.influence - edge.other_influence), edge.source, edge.target))
    return tuple(found[:max_edges])


_NONE = (0.0, 0.0)


def _among(graph: OpenGraph, nodes: Array) -> dict[tuple[int, int], tuple[float, float]]:
    """Edges among some nodes, by their places: weight and share of influence."""
    edges, table = graph.graph.edges, graph.graph.edges.table
    place_N = np.full(table.num_nodes, -1)
    place_N[nodes[nodes >= 0]] = np.flatnonzero(nodes >= 0)
    output = graph.influence.copy()
    output[table.logit_start :] += graph.graph.logit_weights
    whole = max(float(graph.influence.sum()), np.finfo(np.float64).tiny)
    found = {}
    for row in range(edges.num_rows):
        target = row if row < table.num_features else row - table.num_features + table.logit_start
        if place_N[target] < 0 or not graph.sums[row] > 0:
            continue
        low, high = edges.indptr[row], edges.indptr[row + 1]
        places = place_N[edges.indices[low:high]]
        inside = np.flatnonzero(places >= 0)
        values = edges.values[low:high][inside].astype(np.float64)
        scores = np.abs(values) * (output[target] / graph.sums[row] / whole)
        for source, value, score in zip(places[inside].tolist(), values.tolist(), scores.tolist(), strict=True):
            found[source, int(place_N[target])] = (value, score)
    return found
