"""
How well a part of a graph stands for the whole: features outside it count as errors.

An edge from such a feature is what the part does not explain, as an error is, and influence goes no further down
there. With all features in the part the scores are the whole graph's; the replacement score never falls when one more
feature is taken in.

Legend: n nodes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from weft_attribution.core.influence import Edges, Scores

__all__ = ["SubgraphScores", "score_subgraph"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class SubgraphScores:
    """Scores of a part, and the share of all features' influence that its features hold."""

    scores: Scores
    influence_share: float
    num_features: int


def score_subgraph(edges: Edges, influence: Array, logit_weights: Array, nodes: Array) -> SubgraphScores:
    """
    Score the part of a graph that consists of some features, all tokens and all logits.

    Args:
        edges: The whole graph.
        influence: Of its nodes.
        logit_weights: One weight a logit.
        nodes: Nodes of the part; those that are no features change nothing.
    """
    table = edges.table
    features = np.unique(nodes[nodes < table.num_features])
    is_lost = np.ones(table.num_nodes, dtype=bool)
    is_lost[table.token_start :] = False
    is_lost[features] = False
    total = np.zeros(table.num_nodes)
    total[table.logit_start :] = logit_weights
    lost = 0.0
    # Nodes are in the order of layers, and no edge joins two of one layer.
    rows = np.concatenate([np.arange(table.num_features, edges.num_rows), features[::-1]])
    for row, node in zip(rows.tolist(), edges.row_node(rows).tolist(), strict=True):
        columns = edges.indices[edges.indptr[row] : edges.indptr[row + 1]]
        weights = np.abs(edges.values[edges.indptr[row] : edges.indptr[row + 1]].astype(np.float64))
        whole = float(weights.sum())
        if whole > 0 and total[node] > 0:
            weights *= total[node] / whole
            lost += float(weights[is_lost[columns]].sum())
            total[columns] += weights
    everything = float(total.sum())
    tokens = float(total[table.token_start : table.logit_start].sum())
    unexplained = float(total[is_lost].sum())
    held, whole = float(influence[features].sum()), float(influence[: table.num_features].sum())
    return SubgraphScores(
        Scores(
            replacement=tokens / (tokens + unexplained) if tokens + unexplained > 0 else 1.0,
            completeness=min(1.0, max(0.0, 1.0 - lost / everything)) if everything > 0 else 1.0,
        ),
        influence_share=held / whole if whole > 0 else 1.0,
        num_features=len(features),
    )
