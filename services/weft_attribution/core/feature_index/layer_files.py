"""
The file of one layer: a row a feature, in row groups of a few hundred.

| column | what |
| --- | --- |
| `index` | index within the layer, from 0; the row's number |
| `num_active`, `mean`, `largest` | tokens on which it is active; mean and largest activation there |
| `histogram` | how many of these fall into each bin |
| `decoder_norms`, `norm` | norm of its decoder by target layer, and of all together |
| `first_layer`, `last_layer` | the layers that it writes to |
| `encoder_bias`, `threshold` | of its encoder |
| `direction` | its summed decoder at length 1, float16 |
| `neighbours`, `neighbour_cosines` | the nearest by `direction` |
| `partners`, `partner_counts`, `partner_shares` | what is active together with it; -1 past the last |
| `top_positions`, `top_peaks`, `top_windows` | strongest stretches first; windows are float16, over the peak |
| `sample_positions`, `sample_peaks`, `sample_windows` | drawn stretches, weakest first |
| `fired` | bits: whether it is active in each window of the pool |

Legend: F features of a part, K stretches kept for each.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from weft_attribution.core.feature_index.best import BestStretches
from weft_attribution.core.feature_index.gathering import PartState
from weft_attribution.core.feature_index.relations import find_neighbours, find_partners, read_decoders
from weft_attribution.core.feature_index.settings import IndexRequest
from weft_attribution.core.feature_index.tables import LAYER_ROWS, Bytes, Column
from weft_attribution.core.transcoder import TranscoderReader

__all__ = ["SUMMARY_COLUMNS", "layer_groups"]

Array = npt.NDArray[Any]
SUMMARY_COLUMNS = ("index", "num_active", "mean", "largest", "norm", "first_layer", "last_layer")


def layer_groups(
    request: IndexRequest, transcoder: TranscoderReader, layer: int, states: Iterable[PartState], pairs_E2: Array
) -> Iterator[Mapping[str, Column]]:
    """
    Give the row groups of a layer, one after the other.

    Args:
        request: The index.
        transcoder: The transcoder.
        layer: The layer.
        states: Its parts, whole, in order; one is held at a time.
        pairs_E2: Entries of co-activation of all of them.
    """
    settings = request.settings
    decoders = read_decoders(transcoder, layer)
    neighbour_FK, cosine_FK = find_neighbours(decoders.direction_FD, settings.num_neighbours)
    partners = find_partners(pairs_E2, len(decoders.norm_FS), settings.num_neighbours)
    for state in states:
        _, bias_F, threshold_F = transcoder.encoder_rows(layer, state.low, state.high)
        top, sample = _by_key(state.top), _by_peak(state.sample)
        mean_F = state.total_F / np.maximum(state.count_F, 1)
        largest_F = np.where(state.count_F > 0, state.largest_F, 0)
        for low in range(0, state.high - state.low, LAYER_ROWS):
            part = slice(low, min(low + LAYER_ROWS, state.high - state.low))
            rows = slice(state.low + part.start, state.low + part.stop)
            yield {
                "index": np.arange(rows.start, rows.stop, dtype=np.int32),
                "num_active": state.count_F[part],
                "mean": mean_F[part],
                "largest": largest_F[part],
                "histogram": state.histogram_FB[part],
                "decoder_norms": decoders.norm_FS[rows],
                "norm": np.sqrt((decoders.norm_FS[rows].astype(np.float64) ** 2).sum(axis=1)),
                "first_layer": decoders.first_F[rows].astype(np.int32),
                "last_layer": decoders.last_F[rows].astype(np.int32),
                "encoder_bias": np.asarray(bias_F[part], np.float32),
                "threshold": np.asarray(threshold_F[part], np.float32),
                "direction": Bytes(decoders.direction_FD[rows]),
                "neighbours": neighbour_FK[rows].astype(np.int32),
                "neighbour_cosines": cosine_FK[rows],
                "partners": partners.index_FK[rows],
                "partner_counts": partners.count_FK[rows],
                "partner_shares": partners.share_FK[rows],
                **{f"top_{name}": _cut(column, part) for name, column in top.items()},
                **{f"sample_{name}": _cut(column, part) for name, column in sample.items()},
                "fired": Bytes(state.fired_FQ[part]),
            }


def _cut(rows: list[Array], part: slice) -> list[Array]:
    return rows[part]


def _by_key(kept: BestStretches) -> dict[str, list[Array]]:
    arrays = kept.arrays()
    return _stretches(arrays, [np.flatnonzero(position_K >= 0) for position_K in arrays["position"]])


def _by_peak(kept: BestStretches) -> dict[str, list[Array]]:
    arrays, order = kept.arrays(), []
    for position_K, peak_K in zip(arrays["position"], arrays["peak"], strict=True):
        there = np.flatnonzero(position_K >= 0)
        order.append(there[np.lexsort((position_K[there], peak_K[there]))])
    return _stretches(arrays, order)


def _stretches(arrays: Mapping[str, Array], order: list[Array]) -> dict[str, list[Array]]:
    return {
        "positions": [arrays["position"][feature][places] for feature, places in enumerate(order)],
        "peaks": [arrays["peak"][feature][places] for feature, places in enumerate(order)],
        "windows": [arrays["window"][feature][places].reshape(-1) for feature, places in enumerate(order)],
    }
