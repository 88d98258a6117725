"""The trainer's figures for Prometheus."""

import math

from prometheus_client import Counter, Gauge, Histogram

from weft_common.metrics import REGISTRY
from weft_trainer.core.records import Measurement, RunState

__all__ = ["PrometheusGauges"]

_JOBS = Gauge("weft_train_jobs", "Runs, by state.", ("state",), registry=REGISTRY)
_RESTARTS = Counter(
    "weft_train_restarts_total", "Attempts that another followed, by reason.", ("reason",), registry=REGISTRY
)
_CHECKPOINT = Gauge(
    "weft_train_last_checkpoint_timestamp_seconds", "When the last checkpoint was complete.", registry=REGISTRY
)
_STEP_SECONDS = Histogram(
    "weft_train_step_seconds",
    "Seconds of a training step.",
    buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
    registry=REGISTRY,
)
_TOKENS = Counter("weft_train_tokens_total", "Tokens trained on.", registry=REGISTRY)
_LAST = {
    "loss": Gauge("weft_train_loss", "Loss of the last reported step.", registry=REGISTRY),
    "l0": Gauge("weft_train_l0", "Active features a token and layer, last reported step.", registry=REGISTRY),
    "explained_variance": Gauge(
        "weft_train_explained_variance", "Explained variance of the last reported step.", registry=REGISTRY
    ),
    "dead_share": Gauge("weft_train_dead_share", "Share of dead features, last reported step.", registry=REGISTRY),
}


class PrometheusGauges:
    """Sets the metrics; none is labelled by run."""

    def jobs(self, counts: dict[str, int]) -> None:
        for state in RunState:
            _JOBS.labels(state.lower()).set(counts.get(state, 0))

    def restarted(self, reason: str) -> None:
        _RESTARTS.labels(reason).inc()

    def checkpointed(self, moment_s: float) -> None:
        _CHECKPOINT.set(moment_s)

    def trained(self, metrics: Measurement, step_tokens: int) -> None:
        _TOKENS.inc(step_tokens)
        rate = metrics.get("tokens_per_s") or 0.0
        if rate > 0:
            _STEP_SECONDS.observe(step_tokens / rate)
        for name, gauge in _LAST.items():
            value = metrics.get(name)
            gauge.set(math.nan if value is None else value)
