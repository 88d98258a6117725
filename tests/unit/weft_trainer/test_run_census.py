"""What operators are told about runs: how many, how long they wait, which are active and how old their checkpoints."""

import json
import time
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from fake_ranks import SPEC, Controller

from weft_common.metrics import REGISTRY
from weft_trainer.adapters.prometheus_gauges import MOST_RUNS, PrometheusGauges
from weft_trainer.core.census import _count
from weft_trainer.core.gauges import ActiveRun
from weft_trainer.core.records import RunRecord, RunState, Transition


def ago(seconds: float) -> str:
    return datetime.fromtimestamp(time.time() - seconds, UTC).isoformat()


def record(run: str, state: RunState, *, since_s: float = 0.0, **changes: object) -> RunRecord:
    moved = Transition(state, ago(since_s), "test")
    spec = {**SPEC, "checkpoint_steps": 5}
    return replace(RunRecord(run=run, spec=spec, create_time=ago(9999), state=state, transitions=(moved,)), **changes)


async def census(controller: Controller) -> None:
    """Count once."""
    await _count(controller.runs, controller.gauges)


def sample(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def active(run: str) -> ActiveRun:
    return ActiveRun(run, checkpoint_s=100.0, checkpoint_interval_s=60.0, num_steps=10, peak_memory_bytes=1 << 20)


METRICS = {
    "step": 3,
    "loss": 1.5,
    "reconstruction_loss": 0.75,
    "sparsity_loss": 0.5,
    "preact_loss": 0.125,
    "aux_loss": 0.125,
    "l0": 12.0,
    "explained_variance": 0.4,
    "dead_share": 0.1,
    "tokens_per_s": 200.0,
    "sent_bytes_per_token": 640.0,
    "entry_bytes_per_token": 96.0,
}


async def test_census_finds_the_run_that_waits_longest() -> None:
    """Time waited counts from the last change of state, not from the run's creation."""
    controller = Controller()
    for run in (
        record("new", RunState.PENDING, since_s=10),
        record("old", RunState.PENDING, since_s=2000),
        record("paused", RunState.PAUSED, since_s=5000),
    ):
        await controller.runs.create(run)
    await census(controller)
    assert controller.gauges.oldest_pending_s == pytest.approx(2000, abs=5)
    assert controller.gauges.active_runs == {}


async def test_census_expects_checkpoints_as_fast_as_steps_go() -> None:
    """Steps between checkpoints times seconds a step; half an hour before the first step; none where none is due."""
    controller = Controller()
    for run in (
        record("fast", RunState.RUNNING, metrics=METRICS),
        record("unheard", RunState.RUNNING),
        record("last-only", RunState.RUNNING, spec=SPEC),
    ):
        await controller.runs.create(run)
    await census(controller)
    intervals = {run: found.checkpoint_interval_s for run, found in controller.gauges.active_runs.items()}
    assert intervals == {"fast": pytest.approx(5 * 4 / 200), "unheard": 1800.0, "last-only": None}


async def test_census_takes_the_later_of_checkpoint_and_start() -> None:
    """A run that has just come back is not late, and neither is one with a new checkpoint."""
    controller = Controller()
    await controller.runs.create(record("without", RunState.RUNNING, since_s=500))
    await controller.runs.create(record("with", RunState.RUNNING, since_s=500))
    controller.store.put("runs/with/checkpoints/00000005/manifest.json", json.dumps({"attempt": 1}).encode())
    await census(controller)
    ages = {run: time.time() - found.checkpoint_s for run, found in controller.gauges.active_runs.items()}
    assert ages == {"without": pytest.approx(500, abs=5), "with": pytest.approx(0, abs=5)}


def test_gauges_label_active_runs_only() -> None:
    """A run has its series while it is active and none afterwards."""
    gauges = PrometheusGauges()
    gauges.active([active("one")])
    gauges.trained("one", METRICS, 4)
    gauges.checkpointed("one", 123.0)
    assert sample("weft_train_loss", run="one") == 1.5
    parts = [sample(f"weft_train_{part}_loss", run="one") for part in ("reconstruction", "sparsity", "preact", "aux")]
    assert parts == [0.75, 0.5, 0.125, 0.125]
    assert sample("weft_train_step", run="one") == 3
    assert sample("weft_train_sent_bytes_per_token", run="one") == 640
    assert sample("weft_train_entry_bytes_per_token", run="one") == 96
    assert sample("weft_train_wanted_steps", run="one") == 10
    assert sample("weft_train_last_checkpoint_timestamp_seconds", run="one") == 123.0
    assert sample("weft_train_checkpoint_interval_seconds", run="one") == 60.0
    gauges.active([])
    left = [found.name for family in REGISTRY.collect() for found in family.samples if found.labels.get("run") == "one"]
    assert left == []


def test_gauges_bound_the_number_of_runs() -> None:
    """However many runs are active, the number of series stays bounded, and sums still count all of them."""
    gauges = PrometheusGauges()
    tokens = sample("weft_train_tokens_total")
    gauges.active([active(f"run-{number}") for number in range(MOST_RUNS + 20)])
    gauges.trained("one-too-many", METRICS, 4)
    labelled = {
        found.labels["run"] for family in REGISTRY.collect() for found in family.samples if "run" in found.labels
    }
    assert len(labelled) == MOST_RUNS
    assert tokens is not None
    assert sample("weft_train_tokens_total") == tokens + 4
    gauges.active([])


def test_gauges_count_damaged_checkpoints() -> None:
    """From 0 on, so that the first is seen."""
    gauges, before = PrometheusGauges(), sample("weft_train_damaged_checkpoints_total")
    assert before is not None
    gauges.damaged()
    assert sample("weft_train_damaged_checkpoints_total") == before + 1


def test_gauges_show_restarts_before_the_first() -> None:
    """Each reason is there from the start, since Prometheus cannot see the first increase otherwise."""
    PrometheusGauges()
    assert all(
        sample("weft_train_restarts_total", reason=reason) is not None
        for reason in ("bad_exit", "disappeared", "disrupted", "stopped")
    )
