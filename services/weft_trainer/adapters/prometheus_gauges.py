"""The trainer's figures for Prometheus."""

import math
from collections.abc import Sequence
from contextlib import suppress

from prometheus_client import Counter, Gauge, Histogram

from weft_common.metrics import REGISTRY
from weft_trainer.core.gauges import ActiveRun
from weft_trainer.core.records import Measurement, RunState

__all__ = ["MOST_RUNS", "PrometheusGauges"]

MOST_RUNS = 100
"""Active runs that have series of their own; of more, only the sums count."""

_JOBS = Gauge("weft_train_jobs", "Runs, by state.", ("state",), registry=REGISTRY)
_PENDING = Gauge(
    "weft_train_oldest_pending_seconds",
    "How long the run that waits longest for its ranks has waited; 0 where none waits.",
    registry=REGISTRY,
)
_RESTARTS = Counter(
    "weft_train_restarts_total", "Attempts that another followed, by reason.", ("reason",), registry=REGISTRY
)
_DAMAGED = Counter(
    "weft_train_damaged_checkpoints_total", "Checkpoints that ranks left for an older one.", registry=REGISTRY
)
_STEP_SECONDS = Histogram(
    "weft_train_step_seconds",
    "Seconds of a training step.",
    buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
    registry=REGISTRY,
)
_TOKENS = Counter("weft_train_tokens_total", "Tokens trained on.", registry=REGISTRY)


def _of_run(name: str, documentation: str) -> Gauge:
    return Gauge(name, documentation, ("run",), registry=REGISTRY)


_CHECKPOINT = _of_run(
    "weft_train_last_checkpoint_timestamp_seconds",
    "When the run's newest checkpoint was complete, or its ranks began, whichever is later; since 1970.",
)
_INTERVAL = _of_run(
    "weft_train_checkpoint_interval_seconds",
    "Expected time between two checkpoints, from the steps between them; not there for runs that keep only the last.",
)
_NUM_STEPS = _of_run("weft_train_wanted_steps", "Steps that the run is to take.")
_STEP = _of_run("weft_train_step", "Steps done.")
_MEMORY = _of_run("weft_train_peak_memory_bytes", "Largest resident memory of all the run's ranks together.")
_LAST = {
    "loss": _of_run("weft_train_loss", "Loss of the last reported step, in normalised units."),
    "reconstruction_loss": _of_run(
        "weft_train_reconstruction_loss", "Squared error, the first part of the loss of the last reported step."
    ),
    "sparsity_loss": _of_run("weft_train_sparsity_loss", "Sparsity's part of the loss of the last reported step."),
    "preact_loss": _of_run(
        "weft_train_preact_loss", "The pre-activation penalty's part of the loss of the last reported step."
    ),
    "aux_loss": _of_run("weft_train_aux_loss", "AuxK's part of the loss of the last reported step."),
    "l0": _of_run("weft_train_l0", "Active features a token and layer, last reported step."),
    "explained_variance": _of_run(
        "weft_train_explained_variance", "Explained variance of the last reported step, 1 is all."
    ),
    "dead_share": _of_run("weft_train_dead_share", "Share of dead features, last reported step."),
    "gradient_norm": _of_run("weft_train_gradient_norm", "Gradient norm before clipping, last reported step."),
    "tokens_per_s": _of_run("weft_train_tokens_per_second", "Tokens a second, last reported step."),
    "data_wait_share": _of_run(
        "weft_train_data_wait_share", "Share of the last reported step that was spent waiting for data."
    ),
    "sent_bytes_per_token": _of_run(
        "weft_train_sent_bytes_per_token", "Bytes that a rank sent to others for a token, last reported step."
    ),
    "entry_bytes_per_token": _of_run(
        "weft_train_entry_bytes_per_token",
        "Those of them that active features take, as lists and as gradients of values, last reported step.",
    ),
}
_OF_RUNS = (_CHECKPOINT, _INTERVAL, _NUM_STEPS, _STEP, _MEMORY, *_LAST.values())

for _reason in ("bad_exit", "disappeared", "disrupted", "stopped"):
    _RESTARTS.labels(_reason)


class PrometheusGauges:
    """Sets the metrics; at most MOST_RUNS active runs are labels, and their series go when the run ends."""

    def __init__(self) -> None:
        self._runs: set[str] = set()

    def jobs(self, counts: dict[str, int]) -> None:
        for state in RunState:
            _JOBS.labels(state.lower()).set(counts.get(state, 0))

    def pending(self, oldest_s: float) -> None:
        _PENDING.set(oldest_s)

    def active(self, runs: Sequence[ActiveRun]) -> None:
        for run in self._runs - {active.run for active in runs}:
            self._forget(run)
        for active in runs:
            if not self._has_room(active.run):
                continue
            _CHECKPOINT.labels(active.run).set(active.checkpoint_s)
            if active.checkpoint_interval_s is not None:
                _INTERVAL.labels(active.run).set(active.checkpoint_interval_s)
            _NUM_STEPS.labels(active.run).set(active.num_steps)
            _MEMORY.labels(active.run).set(active.peak_memory_bytes)

    def restarted(self, reason: str) -> None:
        _RESTARTS.labels(reason).inc()

    def damaged(self) -> None:
        _DAMAGED.inc()

    def checkpointed(self, run: str, moment_s: float) -> None:
        if self._has_room(run):
            _CHECKPOINT.labels(run).set(moment_s)

    def trained(self, run: str, metrics: Measurement, step_tokens: int) -> None:
        _TOKENS.inc(step_tokens)
        rate = metrics.get("tokens_per_s") or 0.0
        if rate > 0:
            _STEP_SECONDS.observe(step_tokens / rate)
        if not self._has_room(run):
            return
        _STEP.labels(run).set(metrics["step"])
        for name, gauge in _LAST.items():
            value = metrics.get(name)
            gauge.labels(run).set(math.nan if value is None else value)

    def _has_room(self, run: str) -> bool:
        if run not in self._runs and len(self._runs) >= MOST_RUNS:
            return False
        self._runs.add(run)
        return True

    def _forget(self, run: str) -> None:
        self._runs.discard(run)
        for gauge in _OF_RUNS:
            with suppress(KeyError):
                gauge.remove(run)
