"""From a run's events to named values by step, for whatever keeps them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from weft.training.v1 import messages_pb2, service_pb2

__all__ = ["Histogram", "Tracker", "track"]

_NOT_VALUES = frozenset(("step", "tokens"))


@dataclass(frozen=True)
class Histogram:
    """
    Counts between edges.

    Attributes:
        edges: Rising, one more than `counts`.
        counts: At least 0.
    """

    edges: Sequence[float]
    counts: Sequence[int]


class Tracker(Protocol):
    """Keeps values by step; steps never fall."""

    def log(self, step: int, values: Mapping[str, float], histograms: Mapping[str, Histogram]) -> None:
        """Keep what was measured at a step."""
        ...

    def close(self) -> None:
        """Write everything down; nothing follows."""
        ...


def track(events: Iterable[service_pb2.WatchRunResponse], trackers: Sequence[Tracker]) -> int:
    """
    Hand a run's events on until they end, and return how many were kept.

    Names are `train/loss`, `held_out/explained_variance`, by layer `held_out/l0/layer_03`.
    """
    kept = 0
    for event in events:
        histograms: dict[str, Histogram] = {}
        if event.HasField("metrics"):
            step, values = event.metrics.step, _metrics(event.metrics)
        elif event.HasField("evaluation"):
            step, values = event.evaluation.step, _evaluation(event.evaluation)
            histograms = _densities(event.evaluation)
        else:
            continue
        kept += 1
        for tracker in trackers:
            tracker.log(step, values, histograms)
    return kept


def _metrics(metrics: messages_pb2.Metrics) -> dict[str, float]:
    fields = [field.name for field in metrics.DESCRIPTOR.fields if field.name not in _NOT_VALUES]
    return {"train/tokens": metrics.tokens, **{f"train/{name}": getattr(metrics, name) for name in fields}}


def _evaluation(evaluation: messages_pb2.Evaluation) -> dict[str, float]:
    values: dict[str, float] = {
        f"held_out/{name}": getattr(evaluation, name)
        for name in ("explained_variance", "reconstruction_loss", "silent_share", "dense_share")
    }
    for name in ("explained_variance", "l0", "silent_share", "dense_share"):
        for layer, value in enumerate(getattr(evaluation, f"{name}_by_layer")):
            values[f"held_out/{name}/layer_{layer:02d}"] = value
    if evaluation.l0_by_layer:
        values["held_out/l0"] = sum(evaluation.l0_by_layer) / len(evaluation.l0_by_layer)
    return values


def _densities(evaluation: messages_pb2.Evaluation) -> dict[str, Histogram]:
    """Densities by layer; log10 of the share of held-out tokens that a feature fired on."""
    edges, counts = evaluation.density_edges_log10, evaluation.density_counts_by_layer
    if len(edges) < 2:
        return {}
    num_bins = len(edges) - 1
    return {
        f"held_out/density_log10/layer_{first // num_bins:02d}": Histogram(
            list(edges), list(counts[first : first + num_bins])
        )
        for first in range(0, len(counts), num_bins)
    }
