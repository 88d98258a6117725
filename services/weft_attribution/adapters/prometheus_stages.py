"""How long the stages of a graph take, as a Prometheus metric."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Histogram

__all__ = ["PrometheusStages"]

# What core/graph_making.py times.
_STAGES = ("capture", "features", "sweep", "influence", "store")


class PrometheusStages:
    """`weft_attribution_seconds` by stage."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "weft_attribution_seconds",
            "Wall time of one graph, by stage.",
            ["stage"],
            buckets=(0.01, 0.05, 0.2, 1, 5, 20, 60, 300, 1800),
            registry=registry,
        )
        for stage in _STAGES:
            self._seconds.labels(stage)

    def __call__(self, stage_seconds: Mapping[str, float]) -> None:
        """Count one finished graph."""
        for stage, seconds in stage_seconds.items():
            self._seconds.labels(stage).observe(seconds)
