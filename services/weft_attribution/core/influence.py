"""
Influence of every node on the explained logits, pruning, and the two scores.

    A^ = |A| / row sum;  I = p^T (A^ + A^2 + ...), by back-substitution: targets come after all of their sources

Source: Ameisen et al. 2025, methods, "pruning"; circuit-tracer's `graph.py`. Deviations: exact back-substitution in
place of iteration, float64 sums (float32 row sums overflowed there once), thresholds by selection.

Legend: R rows (features, then logits), n nodes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from weft_attribution.core.sweep import NodeTable

__all__ = [
    "Edges",
    "Pruned",
    "Scores",
    "compute_influence",
    "cumulative_share",
    "graph_scores",
    "prune",
    "share_threshold",
]

Array = npt.NDArray[Any]
_CHUNK = 1 << 22
_ROUNDING = 1e-9
MAX_NODES = 8_000
"""Most nodes that pruning keeps besides tokens and logits: what a viewer can draw and a message can carry."""
MAX_EDGES = 30_000
"""Most edges that pruning keeps."""


@dataclass(frozen=True)
class Edges:
    """
    Rows of the adjacency in compressed form: row r is `values[indptr[r] : indptr[r + 1]]` at columns `indices[...]`.

    Rows are features in node order, then logits; `layer_R` is each row's layer, ascending.
    """

    table: NodeTable
    indptr: Array
    indices: Array
    values: Array
    layer_R: Array

    @property
    def num_rows(self) -> int:
        return len(self.indptr) - 1

    def row_node(self, rows: Array) -> Array:
        """Nodes that rows stand for."""
        features = self.table.num_features
        return np.where(rows < features, rows, rows - features + self.table.logit_start)

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Ranges of rows of one layer, top layer first, of bounded size."""
        stop = self.num_rows
        while stop > 0:
            start = int(np.searchsorted(self.layer_R, self.layer_R[stop - 1], side="left"))
            limit = int(np.searchsorted(self.indptr, self.indptr[stop] - _CHUNK, side="left"))
            start = max(start, min(limit, stop - 1))
            yield start, stop
            stop = start


@dataclass(frozen=True)
class Scores:
    """Two scores of a graph, 0 to 1."""

    replacement: float
    completeness: float


@dataclass(frozen=True)
class Pruned:
    """
    What pruning keeps: a mask of nodes, and edges as (source, target, weight).

    `node_share` and `edge_share` are the shares of influence really held: below the thresholds where a limit cut in.
    """

    node_mask: Array
    sources: Array
    targets: Array
    weights: Array
    node_share: float
    edge_share: float


def _row_sums(edges: Edges, keep: Array | None) -> Array:
    sums = np.zeros(edges.num_rows)
    for start, stop in edges.blocks():
        low, high = edges.indptr[start], edges.indptr[stop]
        weights = np.abs(edges.values[low:high].astype(np.float64))
        if keep is not None:
            weights *= keep[edges.indices[low:high]]
        rows = np.repeat(np.arange(stop - start), np.diff(edges.indptr[start : stop + 1]))
        sums[start:stop] = np.bincount(rows, weights, minlength=stop - start)
    return sums


def compute_influence(edges: Edges, logit_weights: Array, keep: Array | None = None) -> tuple[Array, Array]:
    """
    Influence of every node.

    Args:
        edges: The graph.
        logit_weights: One weight a logit node, for example its probability.
        keep: Mask of nodes; edges from and to others count as zero.

    Returns:
        Influence of each node without its own weight, and the row sums that edges were divided by (0 for empty rows).
    """
    sums = _row_sums(edges, keep)
    if keep is not None:
        sums = sums * keep[edges.row_node(np.arange(edges.num_rows))]
    total = np.zeros(edges.table.num_nodes)
    total[edges.table.logit_start :] = logit_weights
    inverse = np.divide(1.0, sums, out=np.zeros_like(sums), where=sums > 0)
    for start, stop in edges.blocks():
        low, high = edges.indptr[start], edges.indptr[stop]
        factor = total[edges.row_node(np.arange(start, stop))] * inverse[start:stop]
        columns = edges.indices[low:high]
        weights = np.abs(edges.values[low:high].astype(np.float64))
        weights *= np.repeat(factor, np.diff(edges.indptr[start : stop + 1]))
        if keep is not None:
            weights *= keep[columns]
        total += np.bincount(columns, weights, minlength=len(total))
    total[edges.table.logit_start :] -= logit_weights
    return total, sums


def graph_scores(edges: Edges, influence: Array, logit_weights: Array, sums: Array) -> Scores:
    """
    Replacement and completeness of the whole graph.

    Nodes without inputs (tokens, errors) count as complete, as in circuit-tracer. A graph without influence scores 1.
    """
    table = edges.table
    errors = float(influence[table.error_start : table.token_start].sum())
    tokens = float(influence[table.token_start : table.logit_start].sum())
    output = influence.copy()
    output[table.logit_start :] += logit_weights
    share = np.zeros(edges.num_rows)
    for start, stop in edges.blocks():
        low, high = edges.indptr[start], edges.indptr[stop]
        columns = edges.indices[low:high]
        is_error = (columns >= table.error_start) & (columns < table.token_start)
        rows = np.repeat(np.arange(stop - start), np.diff(edges.indptr[start : stop + 1]))
        share[start:stop] = np.bincount(rows, np.abs(edges.values[low:high]) * is_error, minlength=stop - start)
    share = np.divide(share, sums, out=np.zeros_like(share), where=sums > 0)
    lost = float((output[edges.row_node(np.arange(edges.num_rows))] * share).sum())
    whole = float(output.sum())
    return Scores(
        replacement=tokens / (tokens + errors) if tokens + errors > 0 else 1.0,
        completeness=min(1.0, max(0.0, 1.0 - lost / whole)) if whole > 0 else 1.0,
    )


def share_threshold(scores: Array, share: float) -> float:
    """
    The smallest score to keep, so that what is kept holds `share` of the sum; by selection, without a full sort.

    >>> share_threshold(np.array([1.0, 5.0, 4.0]), 0.8)
    4.0
    """
    rest = scores[scores > 0]
    wanted = share * float(rest.sum())
    if share >= 1 or not len(rest):
        return 0.0
    while len(rest) > 1024:
        middle = len(rest) // 2
        parted = np.partition(rest, middle)
        upper = parted[middle:]
        held = float(upper.sum())
        if held >= wanted:
            rest = upper
        else:
            wanted -= held
            rest = parted[:middle]
    ordered = np.sort(rest)[::-1]
    place = int(np.searchsorted(np.cumsum(ordered), wanted))
    return float(ordered[min(place, len(ordered) - 1)])


def _keep(scores: Array, share: float) -> Array:
    """
    Mask of the scores that hold a share, with all that equal the smallest of them.

    Paths through one edge make scores equal that rounding makes differ; they stay or go together.
    """
    kept: Array = scores >= share_threshold(scores, share) * (1 - _ROUNDING)
    return kept


def _largest(scores: Array, count: int) -> Array:
    """Mask of the `count` largest scores."""
    mask = np.ones(len(scores), dtype=bool)
    if len(scores) > count:
        mask[np.argpartition(scores, len(scores) - count)[: len(scores) - count]] = False
    return mask


def _held(scores: Array, mask: Array) -> float:
    whole = float(scores.sum())
    return min(1.0, float(scores[mask].sum()) / whole) if whole > 0 else 1.0


def cumulative_share(influence: Array) -> Array:
    """For each node the share of influence held by it and all above it: low means important."""
    order = np.argsort(-influence, kind="stable")
    whole = influence.sum()
    shares = np.empty_like(influence)
    shares[order] = np.cumsum(influence[order]) / whole if whole > 0 else 1.0
    return np.minimum(shares, 1.0)


def prune(
    edges: Edges,
    influence: Array,
    logit_weights: Array,
    *,
    node_threshold: float,
    edge_threshold: float,
    max_nodes: int = MAX_NODES,
    max_edges: int = MAX_EDGES,
) -> Pruned:
    """
    Keep the nodes, then the edges, that hold the given shares of influence; tokens and logits always stay.

    Of more than `max_nodes` features and errors, or `max_edges` edges, the most influential are kept.
    """
    table = edges.table
    node_mask = _keep(influence, node_threshold)
    node_mask[: table.token_start] &= _largest(influence[: table.token_start], max_nodes)
    node_mask[table.token_start :] = True
    node_share = _held(influence, node_mask)
    sub_influence, sums = compute_influence(edges, logit_weights, node_mask)
    sub_influence[table.logit_start :] += logit_weights
    inverse = np.divide(1.0, sums, out=np.zeros_like(sums), where=sums > 0)
    parts: list[tuple[Array, Array, Array, Array]] = []
    for start, stop in edges.blocks():
        low, high = edges.indptr[start], edges.indptr[stop]
        row = np.repeat(np.arange(start, stop), np.diff(edges.indptr[start : stop + 1]))
        columns = edges.indices[low:high]
        inside = np.flatnonzero(node_mask[columns] & (sums[row] > 0))
        row, columns, values = row[inside], columns[inside], edges.values[low:high][inside]
        targets = edges.row_node(row)
        scores = np.abs(values.astype(np.float64)) * inverse[row] * sub_influence[targets]
        parts.append((columns.astype(np.int64), targets, values, scores))
    sources, targets, weights, scores = (np.concatenate([part[i] for part in parts]) for i in range(4))
    edge_mask = _keep(scores, edge_threshold) & (weights != 0) & _largest(scores, max_edges)
    edge_share = _held(scores, edge_mask)
    kept = np.flatnonzero(edge_mask)
    sources, targets, weights = sources[kept], targets[kept], weights[kept]
    while True:
        has_output = np.zeros(table.num_nodes, dtype=bool)
        has_output[sources] = True
        has_input = np.zeros(table.num_nodes, dtype=bool)
        has_input[targets] = True
        mask = node_mask.copy()
        mask[: table.token_start] &= has_output[: table.token_start]
        mask[: table.num_features] &= has_input[: table.num_features]
        inside = np.flatnonzero(mask[sources] & mask[targets])
        if len(inside) == len(sources):
            return Pruned(mask, sources, targets, weights, node_share, edge_share)
        node_mask, sources, targets, weights = mask, sources[inside], targets[inside], weights[inside]
