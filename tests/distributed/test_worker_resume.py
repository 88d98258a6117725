"""Ranks as processes: training, a SIGKILL, a SIGTERM, an evaluation and an export."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np
import psutil
import pytest
import worker_rig
from numpy.typing import NDArray
from safetensors.numpy import load
from worker_rig import D_MODEL, NUM_LAYERS, Rig, harvest, spec_of

from weft_clt.checkpoint import sharded_dim
from weft_store import open_store
from weft_store.documents import encode_json, list_ids, read_json
from weft_store.shard import EncodedShard, encode_shard, encoding
from weft_store.shard.bf16 import round_to_bf16

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
    spec = spec_of(checkpoint_steps=0, num_steps=100)
    alone.create_run("stopped", spec)
    group = alone.start("stopped", 2)
    deadline = time.monotonic() + 120
    while '"first_step"' not in (alone.folder / "stopped.log").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(group.pid, signal.SIGTERM)
    group.wait(180)
    assert len(_steps_saved(alone, "stopped")) == 1, (alone.folder / "stopped.log").read_text()[-6000:]
    alone.train("stopped", 2)
    reference = "alone-uncheckpointed"
    alone.create_run(reference, spec)
    alone.train(reference, 2)
    assert alone.digests("stopped", 100) == alone.digests(reference, 100)


def _wait_for(rig: Rig, run: str, event: str, group: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 120
    while f'"{event}"' not in (log := (rig.folder / f"{run}.log").read_text()):
        assert time.monotonic() < deadline, log[-4000:]
        assert group.poll() is None, log[-4000:]
        time.sleep(0.01)


def _go_back(rig: Rig, run: str, step: int, feature_ranks: int, data_ranks: int) -> None:
    """Leave a run with its checkpoint of a step as the newest, and with other ranks to go on."""
    store = open_store(rig.bucket_url)
    for saved in _steps_saved(rig, run):
        if int(saved) > step:
            store.delete(f"runs/{run}/checkpoints/{saved}/manifest.json")
    document, _ = read_json(store, f"runs/{run}/run.json")
    document["spec"] |= {"feature_ranks": feature_ranks, "data_ranks": data_ranks}
    store.put(f"runs/{run}/run.json", encode_json(document))


def test_worker_goes_on_with_other_ranks(alone: Rig) -> None:
    """Three steps of one rank, three of two feature ranks, six of two data ranks: what two feature ranks come to."""
    alone.create_run("resharded", spec_of(feature_ranks=1))
    alone.train("resharded", 1)
    for step, feature_ranks, data_ranks in ((3, 2, 1), (6, 1, 2)):
        _go_back(alone, "resharded", step, feature_ranks, data_ranks)
        alone.train("resharded", 2)
    store = open_store(alone.bucket_url)
    found = load(store.get("runs/resharded/checkpoints/00000012/attempt1-rank0-of-1.safetensors"))
    folder = "runs/alone/checkpoints/00000012"
    halves = [load(store.get(f"{folder}/attempt1-rank{rank}-of-2.safetensors")) for rank in range(2)]
    for name, array in found.items():
        whole = np.concatenate([half[name] for half in halves], axis=sharded_dim(name))
        np.testing.assert_allclose(array, whole, rtol=1e-3, atol=1e-4, err_msg=name)


def test_worker_leaves_damaged_checkpoints_for_the_newest_whole_one(alone: Rig) -> None:
    """A rank's file is gone, a manifest is cut short: the run goes on from step 6 and ends with the same bytes."""
    alone.create_run("damaged", spec_of())
    alone.train("damaged", 2)
    store, folder = open_store(alone.bucket_url), "runs/damaged/checkpoints/"
    store.delete(f"{folder}00000012/attempt1-rank1-of-2.safetensors")
    manifest = f"{folder}00000009/manifest.json"
    store.put(manifest, store.get(manifest)[:100])
    alone.train("damaged", 2)
    lines = [json.loads(line) for line in (alone.folder / "damaged.log").read_text().splitlines() if line[:1] == "{"]
    assert [line["step"] for line in lines if line["event"] == "checkpoint_damaged"] == [12, 9, 9]
    assert {line["step"] for line in lines if line["event"] == "resumed"} == {6}
    assert alone.digests("damaged", 12) == alone.digests("alone", 12)


def test_rank_that_hangs_is_named(rig: Rig) -> None:
    """A rank that is stopped without an end is told by the others after the bound, and the attempt ends."""
    rig.create_run("hanging", spec_of(num_steps=100_000, checkpoint_steps=0))
    group = rig.start("hanging", 2, WEFT_WORKER_HANG_S="20")
    _wait_for(rig, "hanging", "first_step", group)
    ranks = [
        process
        for process in psutil.Process(group.pid).children(recursive=True)
        if process.environ().get("RANK") == "1" and "weft_trainer.worker" in process.cmdline()
    ]
    ranks[0].suspend()
    assert group.wait(240) == 1
    assert "rank 1 has not come to what rank 0 has been waiting in" in (rig.folder / "hanging.log").read_text()


@pytest.mark.parametrize(
    ("dataset", "bits", "told"),
    [
        (
            "nan",
            0x7FC0,
            r"shard '[^']+' is damaged: it holds 1 values that are not finite, the first at token 5, channel 3.* "
            r"stream 'input', layer 0, row group \d",
        ),
        # The largest number: finite in the shard, but neither in the units of training nor squared in the loss.
        (
            "large",
            0x7F7F,
            r"data of step \d+ is not finite: (input|output) of layer 0, token 5 of row group \d of shard '[^']+'",
        ),
    ],
)
def test_data_that_is_not_finite_is_named_and_not_tried_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, dataset: str, bits: int, told: str
) -> None:
    """What a harvest should never have written ends all ranks with 42, and with its shard and place there."""

    def with_fault(values_TD: NDArray[np.float32]) -> NDArray[np.uint16]:
        bits_TD = round_to_bf16(values_TD)
        bits_TD[5, 3] = bits
        return bits_TD

    def encode(*args: Any, **kwargs: Any) -> EncodedShard:
        sound = encode_shard(*args, **kwargs)
        with monkeypatch.context() as broken:
            broken.setattr(encoding, "round_to_bf16", with_fault)
            # The catalog refuses statistics that are not finite.
            return replace(sound, data=encode_shard(*args, **kwargs).data)

    monkeypatch.setattr(worker_rig, "encode_shard", encode)
    harvest(rig, dataset, shard_tokens=(64, 64, 32))
    rig.create_run(dataset, spec_of(dataset=f"datasets/{dataset}", feature_ranks=1))
    done = subprocess.run(
        [sys.executable, "-m", "weft_trainer.worker"],
        env=rig.environment(dataset),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 42, done.stderr[-3000:]
    assert re.search(told, done.stderr), done.stderr[-3000:]
    assert f"datasets/{dataset}/shards/" in done.stderr


def test_worker_refuses_a_wrong_spec_with_its_own_exit_code(rig: Rig) -> None:
    """A configuration that can never work ends with 42, so that nobody starts it again."""
    document = spec_of(num_features=32, feature_ranks=1, top_k=64)
    rig.create_run("impossible", document)
    done = subprocess.run(
        [sys.executable, "-m", "weft_trainer.worker"],
        env=rig.environment("impossible"),
        capture_output=True,
        timeout=120,
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
    evaluation, _ = read_json(store, "runs/alone/checkpoints/00000012/evaluation-ranks.json")
    assert evaluation["tokens"] == 70
    assert len(evaluation["l0_by_layer"]) == NUM_LAYERS
    _export(alone, "alone", "small")
    manifest, _ = read_json(store, "transcoders/small/manifest.json")
    assert (manifest["activation"], manifest["top_k"]) == ("top_k", 4)
    assert manifest["evaluation"]["explained_variance"] == pytest.approx(evaluation["explained_variance"], abs=1e-5)
    assert manifest["evaluation"]["l0_by_layer"] == pytest.approx(evaluation["l0_by_layer"])
    assert manifest["threshold_evaluation"]["l0_by_layer"] == pytest.approx(evaluation["l0_by_layer"], rel=0.2)
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
    assert manifest["evaluation"] == manifest["threshold_evaluation"]
    assert manifest["activation"] == "threshold"
    assert (load(store.get("transcoders/jump/W_enc_0.safetensors"))["threshold_0"] > 0).any()
