"""
The strongest paths between two nodes, over all edges of the whole graph.

The strength of a path is the product of its edges' shares of their targets' input. One pass from the source up finds
for every node the strongest path that reaches it from there, and all of them added up. From the target down, the best
way to go on is then always known, so that paths come out in order and nothing else is looked at.

Legend: n nodes.
"""

import heapq
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from weft_attribution.core.influence import Edges

__all__ = ["FoundPaths", "Path", "strongest_paths"]

Array = npt.NDArray[Any]
_Partial = tuple[float, int, tuple[int, ...], tuple[float, ...], float]


@dataclass(frozen=True)
class Path:
    """Nodes from source to target, the weights of the edges between them, and the product of their shares."""

    nodes: tuple[int, ...]
    weights: tuple[float, ...]
    strength: float


@dataclass(frozen=True)
class FoundPaths:
    """Paths, strongest first, and the strength of all there are between the two nodes together."""

    paths: tuple[Path, ...]
    total: float


def strongest_paths(edges: Edges, sums: Array, source: int, target: int, *, count: int) -> FoundPaths:
    """
    Find the `count` strongest paths.

    Args:
        edges: The whole graph.
        sums: Sum of each row's absolute edges.
        source: A node.
        target: A node that is a row: a feature or a logit.
        count: Most paths.
    """
    best, total = _from_source(edges, sums, source, _row(edges, target))
    found: list[Path] = []
    # What a path can come to at most, negative; then longer ones first, so that ties end soon; then its nodes.
    waiting: list[_Partial] = []
    if best[target] > 0 and source != target:
        waiting.append((-float(best[target]), 0, (target,), (), 1.0))
    while waiting and len(found) < count:
        _, _, nodes, weights, strength = heapq.heappop(waiting)
        if nodes[0] == source:
            found.append(Path(nodes, weights, strength))
            continue
        row = _row(edges, nodes[0])
        low, high = edges.indptr[row], edges.indptr[row + 1]
        columns, values = edges.indices[low:high], edges.values[low:high]
        shares = np.abs(values.astype(np.float64)) / sums[row]
        bounds = strength * shares * best[columns]
        # More ways down than paths wanted cannot all be among them.
        for place in np.argsort(-bounds, kind="stable")[:count]:
            if bounds[place] > 0:
                longer = (int(columns[place]), *nodes)
                entry = (float(values[place]), *weights), strength * float(shares[place])
                heapq.heappush(waiting, (-float(bounds[place]), -len(longer), longer, *entry))
    return FoundPaths(tuple(found), float(total[target]) if source != target else 0.0)


def _row(edges: Edges, node: int) -> int:
    table = edges.table
    return node if node < table.num_features else node - table.logit_start + table.num_features


def _from_source(edges: Edges, sums: Array, source: int, last_row: int) -> tuple[Array, Array]:
    """For every node up to a row the strongest path from the source, and all paths added up."""
    best, total = np.zeros(edges.table.num_nodes), np.zeros(edges.table.num_nodes)
    best[source] = total[source] = 1.0
    for start, stop in reversed(list(edges.blocks())):
        if start > last_row:
            break
        low, high = int(edges.indptr[start]), int(edges.indptr[stop])
        counts = np.diff(edges.indptr[start : stop + 1])
        reached = np.flatnonzero((counts > 0) & (sums[start:stop] > 0))
        if not len(reached):
            continue
        columns = edges.indices[low:high]
        if not total[columns].any():
            continue
        shares = np.abs(edges.values[low:high].astype(np.float64))
        shares /= np.repeat(np.where(sums[start:stop] > 0, sums[start:stop], 1.0), counts)
        nodes = edges.row_node(start + reached)
        begins = edges.indptr[start + reached] - low
        best[nodes] = np.maximum(best[nodes], np.maximum.reduceat(shares * best[columns], begins))
        total[nodes] += np.add.reduceat(shares * total[columns], begins)
    return best, total
