"""
What a graph says about changed features, to be held against the model.

Legend: R rows (features, then logits), N features, K logits.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from weft_attribution.core.influence import Edges
from weft_attribution.core.ports import Addition
from weft_attribution.core.transcoder import TranscoderReader

__all__ = ["feature_additions", "predict", "predict_rows"]

Array = npt.NDArray[Any]


def predict(edges: Edges, activation_N: Array, delta: Mapping[int, float]) -> tuple[Array, Array]:
    """
    Changes of the demeaned logits that the graph predicts.

    Args:
        edges: The whole graph.
        activation_N: Activations of its features.
        delta: Change of activation by feature node.

    Returns:
        By direct edges alone, and over all paths through features.
    """
    features = edges.table.num_features
    change_n = np.zeros(edges.table.num_nodes)
    for node, amount in delta.items():
        change_n[node] = amount / activation_N[node]
    direct_R = _apply(edges, change_n, features, edges.num_rows)
    for start, stop in reversed(list(edges.blocks())):
        if stop <= features:
            change_n[start:stop] += _apply(edges, change_n, start, stop) / activation_N[start:stop]
    return direct_R, _apply(edges, change_n, features, edges.num_rows)


def predict_rows(edges: Edges, activation_N: Array, delta: Mapping[int, float], answers_N: Array) -> Array:
    """
    Changes of all rows' values that the graph predicts over all paths.

    Args:
        edges: The whole graph.
        activation_N: Activations of its features.
        delta: Change of activation by feature node.
        answers_N: Mask of the features that answer to what reaches them, those that are changed too.

    Returns:
        float64 [R]: of features their pre-activations, then of what is explained.
    """
    features = edges.table.num_features
    change_n, found_R = np.zeros(edges.table.num_nodes), np.zeros(edges.num_rows)
    for node, amount in delta.items():
        change_n[node] = amount / activation_N[node]
    for start, stop in reversed(list(edges.blocks())):
        found_R[start:stop] = _apply(edges, change_n, start, stop)
        if stop <= features:
            change_n[start:stop] += np.where(answers_N[start:stop], found_R[start:stop], 0.0) / activation_N[start:stop]
    return found_R


def _apply(edges: Edges, change_n: Array, start: int, stop: int) -> Array:
    low, high = edges.indptr[start], edges.indptr[stop]
    weighted = edges.values[low:high].astype(np.float64) * change_n[edges.indices[low:high]]
    rows = np.repeat(np.arange(stop - start), np.diff(edges.indptr[start : stop + 1]))
    return np.bincount(rows, weighted, minlength=stop - start)


def feature_additions(
    transcoder: TranscoderReader, changes: Sequence[tuple[int, int, int, float]], num_layers: int
) -> tuple[Addition, ...]:
    """
    What changed features add to MLP outputs: delta times decoder at every target layer.

    Args:
        transcoder: Where the decoders are.
        changes: (layer, index, position, change of activation).
        num_layers: Layers of the model.
    """
    moved: dict[tuple[int, int], list[tuple[int, float]]] = {}
    for layer, index, position, amount in changes:
        moved.setdefault((layer, index), []).append((position, amount))
    by_place: dict[tuple[int, int], Array] = {}
    for (layer, index), places in moved.items():
        # Each decoder is read once, however many positions it is written at.
        for _, rows in transcoder.decoders(layer, np.array([index], dtype=np.int64)):
            # Decoders may end below the last layer.
            for target in range(layer, min(num_layers, layer + rows.shape[1])):
                decoder_D = rows[0, target - layer].astype(np.float64)
                for position, amount in places:
                    vector, place = decoder_D * amount, (target, position)
                    by_place[place] = by_place[place] + vector if place in by_place else vector
    additions = []
    for target in range(num_layers):
        positions = sorted(position for layer, position in by_place if layer == target)
        if positions:
            value_PD = np.stack([by_place[target, position] for position in positions])
            additions.append(Addition(target, tuple(positions), value_PD.astype(np.float32)))
    return tuple(additions)
