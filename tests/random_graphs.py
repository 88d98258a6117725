"""Random causal graphs, sparse and dense, and their influence by the matrix inverse."""

import numpy as np
from numpy.typing import NDArray

from weft_attribution.core.influence import Edges
from weft_attribution.core.sweep import NodeTable

Dense = NDArray[np.float64]


def random_graph(seed: int, *, density: float = 0.6, errors: bool = True) -> tuple[Edges, Dense, Dense]:
    """A random causal graph: its rows, the dense adjacency over all nodes, and weights of its logits."""
    rng = np.random.default_rng(seed)
    layers, positions, logits = int(rng.integers(1, 5)), int(rng.integers(2, 5)), int(rng.integers(1, 4))
    places = sorted((int(rng.integers(layers)), int(rng.integers(1, positions))) for _ in range(rng.integers(0, 25)))
    table = NodeTable(len(places), layers, positions, logits)
    source = [
        *places,
        *((i, p) for i in range(layers) for p in range(1, positions)),
        *((-1, p) for p in range(positions)),
    ]
    target = [*places, *((layers, positions - 1) for _ in range(logits))]
    rows = np.zeros((len(target), table.logit_start))
    for r, (layer, position) in enumerate(target):
        for c, (source_layer, source_position) in enumerate(source):
            is_error = table.error_start <= c < table.token_start
            if (
                source_layer < layer
                and source_position <= position
                and rng.random() < density
                and (errors or not is_error)
            ):
                rows[r, c] = rng.normal() * 10.0 ** rng.integers(-3, 3)
    rows = rows.astype(np.float32).astype(np.float64)
    place, column = np.nonzero(rows)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(place, minlength=len(rows)))])
    layer_of = np.array([layer for layer, _ in target])
    edges = Edges(table, indptr, column.astype(np.int32), rows[place, column].astype(np.float32), layer_of)
    dense = np.zeros((table.num_nodes, table.num_nodes))
    dense[: len(places), : table.logit_start] = rows[: len(places)]
    dense[table.logit_start :, : table.logit_start] = rows[len(places) :]
    weights = rng.random(logits) + 0.01
    return edges, dense, weights


def dense_influence(dense: Dense, weights: Dense) -> tuple[Dense, Dense]:
    """Influence by the matrix inverse, and the normalised matrix."""
    sums = np.abs(dense).sum(axis=1, keepdims=True)
    normal = np.divide(np.abs(dense), sums, out=np.zeros_like(dense), where=sums > 0)
    start = np.zeros(len(dense))
    start[len(dense) - len(weights) :] = weights
    return start @ (np.linalg.inv(np.eye(len(dense)) - normal) - np.eye(len(dense))), normal
