"""
Features as SAEDashboard's batches, which Neuronpedia takes.

Source: SAEDashboard at db4839a, `neuronpedia_converter.py` and `neuronpedia_dashboard.py`; Neuronpedia at ebb8426f.
Deviations: what is measured beside a model's neurons is empty (alignment, correlated neurons and features), and so is
`vector`, since a feature may write to many layers; dead features are in `skipped_indexes.json` alone, where
`log_sparsity`, a training run's threshold, is null. Intervals reach halfway to the peaks of the groups beside them,
since a group here may be one window. A character that tokens share stands whole at the one that is most active.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from weft_attribution.core.feature_export.describing import Described, Group
from weft_attribution.core.feature_export.rounding import rounded
from weft_attribution.core.feature_export.settings import ExportRequest
from weft_attribution.core.feature_index.opened import OpenIndex
from weft_common.token_texts import run_texts

__all__ = ["SaeDashboardFiles"]

_ACTIVATION_BARS = 50
_EMPTY = (
    "neuron_alignment_indices",
    "neuron_alignment_values",
    "neuron_alignment_l1",
    "correlated_neurons_indices",
    "correlated_neurons_l1",
    "correlated_neurons_pearson",
    "correlated_features_indices",
    "correlated_features_l1",
    "correlated_features_pearson",
    "decoder_weights_dist",
    "vector",
)
Json = dict[str, Any]


class SaeDashboardFiles:
    """
    Writes batches.

    Args:
        request: The export, looked up.
        index: What it is of.
    """

    def __init__(self, request: ExportRequest, index: OpenIndex) -> None:
        self._request, self._index = request, index
        num_sequences = int(index.manifest["num_sequences"])
        self._source: Json = {
            "n_prompts_total": num_sequences,
            "n_tokens_in_prompt": round(index.num_tokens / max(1, num_sequences)),
            "dataset": index.request.dataset,
        }

    def folder(self, layer: int) -> str:
        """Where the files of a layer lie."""
        return f"{layer}-{self._request.source_set}"

    def batch(self, described: Sequence[Described], piece_of: Mapping[int, bytes]) -> bytes:
        """One file: some neighbouring features of a layer, without those that never fire."""
        document = {
            **self._whose(described[0].layer),
            "sae_id_suffix": None,
            "features": [self._feature(each, piece_of) for each in described if each.activations.total],
        }
        return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()

    def skipped(self, layer: int) -> bytes:
        """The file that says which features of a layer are dead."""
        here = self._index.layer_N == layer
        dead = self._index.index_N[here & (self._index.columns["num_active"] == 0)]
        document = {
            **self._whose(layer),
            "layer": str(layer),
            "log_sparsity": None,
            "skipped_indexes": dead.tolist(),
        }
        return json.dumps(document, separators=(",", ":")).encode()

    def _whose(self, layer: int) -> Json:
        return {"model_id": self._request.model_name, "layer": layer, "sae_set": self._request.source_set}

    def _feature(self, each: Described, piece_of: Mapping[int, bytes]) -> Json:
        middles, heights = each.activations.bars(_ACTIVATION_BARS)
        logit_middles, logit_heights = each.logit_bars
        return {
            "feature_index": each.index,
            **{name: [] for name in _EMPTY},
            "neg_str": [piece_of[token.id].decode(errors="replace") for token, _ in each.bottom],
            "neg_values": rounded(value for _, value in each.bottom),
            "pos_str": [piece_of[token.id].decode(errors="replace") for token, _ in each.top],
            "pos_values": rounded(value for _, value in each.top),
            "frac_nonzero": each.density,
            "freq_hist_data_bar_values": rounded(middles.tolist()),
            "freq_hist_data_bar_heights": rounded(heights.tolist()),
            "logits_hist_data_bar_heights": logit_heights.tolist(),
            "logits_hist_data_bar_values": rounded(logit_middles.tolist()),
            **self._source,
            "activations": [window for group in each.groups for window in _windows(each, group, piece_of)],
        }


def _interval(each: Described, group: Group) -> tuple[float, float, float]:
    """Bounds of a group that was drawn, and the share of the activations between them, which is never 0."""
    peaks = [window.peak for window in group.windows]
    others = [window.peak for other in each.groups if other.quantile >= 0 for window in other.windows]
    below = [peak for peak in others if peak < min(peaks)]
    above = [peak for peak in others if peak > max(peaks)]
    largest = each.activations.largest
    low = (max(below) + min(peaks)) / 2 if below else 0.0
    high = (min(above) + max(peaks)) / 2 if above else largest
    # What lies at the very top counts too.
    share = 1.0 if high >= largest else each.activations.share_below(high)
    return low, high, share - each.activations.share_below(low)


def _windows(each: Described, group: Group, piece_of: Mapping[int, bytes]) -> Iterator[Json]:
    # A group without bounds, as theirs, holds the strongest.
    low, high, share = (-1.0, each.activations.largest, -1.0) if group.quantile < 0 else _interval(each, group)
    for window in group.windows:
        yield {
            "bin_min": low,
            "bin_max": high,
            "bin_contains": share,
            "tokens": list(run_texts([piece_of[token] for token in window.token_ids], window.activations)),
            "values": rounded(window.activations),
            "qualifying_token_index": window.peak_at,
        }
