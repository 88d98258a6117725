"""Ranks as processes: training, a SIGKILL, a SIGTERM, an evaluation and an export."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from safetensors.numpy import load
from worker_rig import D_MODEL, NUM_LAYERS, Rig, spec_of

from weft_store import open_store
from weft_store.documents import list_ids, read_json

pytestmark = pytest.mark.distributed


def _steps_saved(rig: Rig, run: str) -> list[str]:
    return list(list_ids(open_store(rig.bucket_url), f"runs/{run}/checkpoints/", "/manifest.json"))


@pytest.fixture(scope="module")
def alone(rig: Rig) -> Rig:
    """A run of two ranks that was left alone."""
    rig.create_run("alone", spec_of())
    rig.train("alone", 2)
    return rig


def test_worker_trains_to_its_last_step(alone: Rig) -> None:
    """Metrics of every step are in the bucket, and the loss falls."""
    metrics = alone.metrics("alone")
    assert [entry["step"] for entry in metrics] == list(range(1, 13))
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    assert _steps_saved(alone, "alone") == ["00000003", "00000006", "00000009", "00000012"]


def test_worker_killed_at_a_random_moment_resumes_bit_for_bit(alone: Rig) -> None:
    """After SIGKILL of all ranks, another start ends with the bytes of the run that was left alone."""
    alone.create_run("killed", spec_of())
    group = alone.start("killed", 2)
    deadline = time.monotonic() + 120
    while not _steps_saved(alone, "killed"):
        assert time.monotonic() < deadline
        assert group.poll() is None, (alone.folder / "killed.log").read_text()[-4000:]
        time.sleep(0.005)
    time.sleep(random.uniform(0, 0.3))
    alone.kill(group)
    alone.train("killed", 2)
    assert alone.digests("killed", 12) == alone.digests("alone", 12)


def test_worker_saves_and_stops_when_terminated(alone: Rig) -> None:
    """SIGTERM ends with a checkpoint of the step reached; the next start goes on from it to the same bytes."""
    alone.create_run("stopped", spec_of(checkpoint_steps=0))
    group = alone.start("stopped", 2)
    deadline = time.monotonic() + 120
    while '"ready"' not in (alone.folder / "stopped.log").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(group.pid, signal.SIGTERM)
    group.wait(60)
    assert len(_steps_saved(alone, "stopped")) == 1
    alone.train("stopped", 2)
    reference = "alone-uncheckpointed"
    alone.create_run(reference, spec_of(checkpoint_steps=0))
    alone.train(reference, 2)
    assert alone.digests("stopped", 12) == alone.digests(reference, 12)


def test_worker_refuses_a_wrong_spec_with_its_own_exit_code(rig: Rig) -> None:
    """A configuration that can never work ends with 42, so that nobody starts it again."""
    document = spec_of(num_features=32, feature_ranks=1, top_k=64)
    rig.create_run("impossible", document)
    done = subprocess.run(
        [sys.executable, "-m", "weft_trainer.worker"],
        env=rig.environment("impossible"),
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 42
    assert b"top_k" in done.stderr


def _export(rig: Rig, run: str, transcoder: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "weft_trainer.worker.export"],
        env=rig.environment(run, WEFT_WORKER_CHECKPOINT_STEP="12", WEFT_WORKER_TRANSCODER=transcoder),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def test_worker_evaluates_and_exports_a_checkpoint(alone: Rig) -> None:
    """The evaluation lies beside the checkpoint; the export has every file of the layout, and its own evaluation."""
    store = open_store(alone.bucket_url)
    alone.train("alone", 2, WEFT_WORKER_MODE="evaluate", WEFT_WORKER_CHECKPOINT_STEP="12")
    evaluation, _ = read_json(store, "runs/alone/checkpoints/00000012/evaluation.json")
    assert evaluation["tokens"] == 70
    assert len(evaluation["l0_by_layer"]) == NUM_LAYERS
    _export(alone, "alone", "small")
    manifest, _ = read_json(store, "transcoders/small/manifest.json")
    assert manifest["trained_evaluation"]["explained_variance"] == pytest.approx(
        evaluation["explained_variance"], abs=1e-5
    )
    assert manifest["evaluation"]["l0_by_layer"] == pytest.approx(evaluation["l0_by_layer"], rel=0.2)
    for layer in range(NUM_LAYERS):
        encoder = load(store.get(f"transcoders/small/W_enc_{layer}.safetensors"))
        assert encoder[f"W_enc_{layer}"].shape == (32, D_MODEL)
        assert (encoder[f"threshold_{layer}"] >= 0).all()
        decoder = load(store.get(f"transcoders/small/W_dec_{layer}.safetensors"))
        assert decoder[f"W_dec_{layer}"].shape == (32, NUM_LAYERS - layer, D_MODEL)


def test_jump_relu_is_exported_as_it_was_trained(rig: Rig) -> None:
    """Its thresholds are its own, so what is exported is evaluated once and is what was trained."""
    jump = {
        "activation": "ACTIVATION_JUMP_RELU", "top_k": 0, "sparsity_coeff": 1e-3, "sparsity_scale": 4.0,
        "threshold_init": 0.03, "bandwidth": 1.0,
    }  # fmt: skip
    rig.create_run("jump", spec_of(**jump))
    rig.train("jump", 2)
    _export(rig, "jump", "jump")
    store = open_store(rig.bucket_url)
    manifest, _ = read_json(store, "transcoders/jump/manifest.json")
    assert manifest["evaluation"] == manifest["trained_evaluation"]
    assert (load(store.get("transcoders/jump/W_enc_0.safetensors"))["threshold_0"] > 0).any()
