"""
Features counted again, by loops over float64, from the shards themselves.

An index computes in float32, so a pre-activation that lies within rounding of its threshold may fall on the other side
of it: such tokens are counted, and every difference must be one of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from weft_attribution.core.feature_index.gathering import bin_edges
from weft_attribution.core.feature_index.opened import OpenIndex
from weft_attribution.core.feature_index.sequences import read_text
from weft_attribution.core.transcoder import TranscoderReader
from weft_store.port import ObjectStore
from weft_store.shard import Bases, ShardReader

__all__ = ["Recount", "recount"]

_NEAR = 1e-4
Array = np.ndarray[Any, Any]


@dataclass
class Recount:
    """What was compared, and what differed."""

    features: int = 0
    active: int = 0
    near_threshold: int = 0
    counts_off: int = 0
    bins_off: int = 0
    examples: int = 0
    examples_off: int = 0
    largest_error: float = 0.0


def recount(store: ObjectStore, index: OpenIndex, places: Sequence[tuple[int, int]]) -> Recount:
    """Count some features again, and hold every figure and example that the index has of them against it."""
    found = read_text(store, index.request.keys)
    assert found is not None
    text, spans = found
    reader = TranscoderReader(store, index.transcoder)
    result = Recount(features=len(places))
    edges, bases = bin_edges(), Bases(store)
    for layer in sorted({layer for layer, _ in places}):
        chosen = [feature for at, feature in places if at == layer]
        rows: list[Array] = []
        for span in spans:
            shard = ShardReader(store, span.key, bases)
            groups = range(-(-span.num_rows // span.row_group_tokens))
            whole = np.concatenate([shard.read("input", layer, group) for group in groups])
            rows.append(whole[: span.num_rows])
        inputs_TD = np.concatenate(rows).astype(np.float64)
        for feature in chosen:
            weight_FD, bias_F, threshold_F = (
                each.astype(np.float64) for each in reader.encoder_rows(layer, feature, feature + 1)
            )
            pre_T = inputs_TD @ weight_FD[0] + bias_F[0]
            acts_P = np.zeros(len(text.kept_P))
            acts_P[text.kept_P] = np.where(pre_T > threshold_F[0], pre_T, 0)
            near = int((np.abs(pre_T - threshold_F[0]) < _NEAR).sum())
            _compare(index, layer, feature, acts_P, text.start_N, edges, near, result)
    return result


def _compare(
    index: OpenIndex, layer: int, feature: int, acts_P: Array, start_N: Array, edges: Array, near: int, result: Recount
) -> None:
    row, examples = index.row(layer, feature), index.examples(layer, feature)
    active = acts_P[acts_P > 0]
    result.active += len(active)
    result.near_threshold += near
    result.counts_off += max(0, abs(row.num_active - len(active)) - near)
    # A value at an edge may fall into the bin beside it.
    at_edges = sum(int((np.abs(active / edge - 1) < 1e-5).sum()) for edge in edges[1:-1])
    counted = np.histogram(np.clip(active, edges[0], edges[-1] * (1 - 1e-9)), edges)[0]
    result.bins_off += max(0, int(np.abs(counted - np.array(row.histogram)).sum()) - near - 2 * at_edges)
    width = index.request.settings.window_tokens
    peaks = []
    for low, high in zip(start_N[:-1].tolist(), start_N[1:].tolist(), strict=True):
        for tile in range(low, high, width):
            part = acts_P[tile : min(tile + width, high)]
            if part.max() > 0:
                peaks.append(float(part.max()))
    strongest = sorted(peaks, reverse=True)[: index.request.settings.num_top]
    result.examples += len(examples.top) + len(examples.by_quantile)
    if len(strongest) != len(examples.top) and not near:
        result.examples_off += abs(len(strongest) - len(examples.top))
    for window, peak in zip(examples.top, strongest, strict=False):
        error = abs(window.peak / peak - 1)
        result.largest_error = max(result.largest_error, error)
        result.examples_off += int(error > 1e-4)
    for window in (*examples.top, *examples.by_quantile):
        start = int(start_N[window.sequence]) + window.start
        there = acts_P[start : start + len(window.token_ids)]
        error = np.abs(there - window.activations).max() / window.peak
        result.examples_off += int(error > 2e-3)
