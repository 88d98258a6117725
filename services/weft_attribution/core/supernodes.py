"""
A graph in a few groups: which features belong together, and what flows between the groups.

Features are alike where they write alike, where they stand alike in the graph, or both. All nodes fall into groups, so
that flows add up: those of a group into any are its influence.

Legend: n features that are grouped, N nodes, G groups, D d_model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from weft_attribution.core.grouping import average_linkage, cosines
from weft_attribution.core.influence import Edges, share_threshold
from weft_attribution.core.transcoder import TranscoderReader

__all__ = ["KINDS", "Group", "choose_features", "flows", "group_nodes", "positions_in_graph", "similarity", "written"]

Array = npt.NDArray[Any]
KINDS = ("features", "tokens", "errors", "logits", "others")
MAX_GROUPED = 1_000
"""Most features that are grouped: similarities grow with the square."""
MAX_TOKENS_ALONE = 5


@dataclass(frozen=True)
class Group:
    """Nodes that belong together, most influential first."""

    kind: str
    nodes: Array


def choose_features(influence: Array, num_features: int, share: float) -> Array:
    """The most influential features that hold a share of all features' influence, `MAX_GROUPED` at most, in order."""
    scores = influence[:num_features]
    chosen = np.flatnonzero((scores >= share_threshold(scores, share)) & (scores > 0))
    if len(chosen) > MAX_GROUPED:
        chosen = chosen[np.argsort(-scores[chosen], kind="stable")[:MAX_GROUPED]]
    return np.sort(chosen)


def written(transcoder: TranscoderReader, layer_n: Array, index_n: Array, d_model: int) -> Array:
    """What features write, summed over the layers that they write to: float32 [n, D]."""
    found = np.zeros((len(layer_n), d_model), dtype=np.float32)
    for layer in np.unique(layer_n).tolist():
        places = np.flatnonzero(layer_n == layer)
        indices, which = np.unique(index_n[places], return_inverse=True)
        sums = np.zeros((len(indices), d_model), dtype=np.float32)
        for first, rows in transcoder.decoders(layer, indices.astype(np.int64)):
            sums[first : first + len(rows)] = rows.sum(axis=1)
        found[places] = sums[which]
    return found


def positions_in_graph(edges: Edges, sums: Array, influence: Array, logit_weights: Array, features_n: Array) -> Array:
    """
    Where features stand: what feeds them, and what they feed, as far as it is tokens, logits and the features given.

    Returns:
        float64 [n, 2 n + tokens + logits]: shares of a feature's input, then of its influence.
    """
    table = edges.table
    count, logits, tokens = len(features_n), table.num_logits, table.num_positions
    place_N = np.full(table.num_nodes, -1)
    place_N[features_n] = np.arange(count)
    place_N[table.token_start : table.logit_start] = np.arange(count, count + tokens)
    share = np.zeros((count + logits, count + tokens))
    rows = np.concatenate([features_n, np.arange(table.num_features, edges.num_rows)])
    for place, row in enumerate(rows.tolist()):
        columns = place_N[edges.indices[edges.indptr[row] : edges.indptr[row + 1]]]
        if sums[row] > 0:
            values = np.abs(edges.values[edges.indptr[row] : edges.indptr[row + 1]].astype(np.float64))
            share[place, columns[columns >= 0]] = values[columns >= 0] / sums[row]
    output = np.concatenate([influence[features_n], logit_weights + influence[table.logit_start :]])
    fed = (share[:, :count] * output[:, None]).T
    total = fed.sum(axis=1, keepdims=True)
    fed = np.divide(fed, total, out=np.zeros_like(fed), where=total > 0)
    return np.concatenate([share[:count], fed], axis=1)


def similarity(written_nD: Array | None, place_nM: Array | None) -> Array:
    """The mean of the cosines of those that are given, negative ones as 0."""
    parts = [cosines(each.astype(np.float64)).clip(min=0) for each in (written_nD, place_nM) if each is not None]
    return np.mean(parts, axis=0)  # type: ignore[no-any-return]


def group_nodes(
    edges: Edges, influence: Array, features_n: Array, similarity_nn: Array, max_groups: int
) -> list[Group]:
    """
    Let every node fall into a group: supernodes of features from the lowest layers up, then the rest.

    Args:
        edges: The whole graph.
        influence: Of its nodes.
        features_n: Features that are grouped.
        similarity_nn: How alike they are.
        max_groups: Most supernodes.
    """
    table = edges.table

    def ranked(nodes: Array) -> Array:
        return np.asarray(nodes[np.argsort(-influence[nodes], kind="stable")])

    found: list[Group] = []
    if len(features_n):
        group_n = average_linkage(1.0 - similarity_nn, max_groups)
        members = [features_n[group_n == group] for group in range(int(group_n.max()) + 1)]
        members.sort(key=lambda nodes: float(np.average(edges.layer_R[nodes], weights=influence[nodes])))
        found += [Group("features", ranked(nodes)) for nodes in members]
    tokens = ranked(np.arange(table.token_start, table.logit_start))
    found += [Group("tokens", tokens[place : place + 1]) for place in range(min(MAX_TOKENS_ALONE, len(tokens)))]
    rest = np.setdiff1d(np.arange(table.num_features), features_n)
    others = (
        Group("tokens", tokens[MAX_TOKENS_ALONE:]),
        Group("errors", ranked(np.arange(table.error_start, table.token_start))),
        Group("logits", ranked(np.arange(table.logit_start, table.num_nodes))),
        Group("others", ranked(rest)),
    )
    return found + [group for group in others if len(group.nodes)]


def flows(
    edges: Edges, sums: Array, influence: Array, logit_weights: Array, groups: Sequence[Group]
) -> tuple[Array, Array]:
    """
    What flows between groups, over all edges of the whole graph.

    Returns:
        Influence [G, G] by source and target, and the same with the edges' signs.
    """
    table, count = edges.table, len(groups)
    group_N = np.zeros(table.num_nodes, dtype=np.int64)
    for place, group in enumerate(groups):
        group_N[group.nodes] = place
    output = influence.copy()
    output[table.logit_start :] += logit_weights
    whole, net = np.zeros(count * count), np.zeros(count * count)
    for start, stop in edges.blocks():
        low, high = edges.indptr[start], edges.indptr[stop]
        targets = edges.row_node(np.arange(start, stop))
        factor = np.divide(output[targets], sums[start:stop], out=np.zeros(stop - start), where=sums[start:stop] > 0)
        counts = np.diff(edges.indptr[start : stop + 1])
        scores = edges.values[low:high].astype(np.float64) * np.repeat(factor, counts)
        pair = group_N[edges.indices[low:high]] * count + np.repeat(group_N[targets], counts)
        net += np.bincount(pair, scores, minlength=count * count)
        whole += np.bincount(pair, np.abs(scores), minlength=count * count)
    return whole.reshape(count, count), net.reshape(count, count)
