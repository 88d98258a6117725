"""Ranks as processes, to an export, over recipes that count over tokens or layers, revive features, or use a window."""

import subprocess
import sys
from typing import Any

import pytest
from safetensors.numpy import load
from worker_rig import NUM_LAYERS, Rig, spec_of

from weft_store import open_store
from weft_store.documents import read_json

pytestmark = pytest.mark.distributed

CASES: dict[str, dict[str, Any]] = {
    "batch": {"activation": "ACTIVATION_BATCH_TOP_K", "aux_top_k": 4, "aux_coeff": 0.03125, "dead_after_tokens": 32},
    "joint": {"activation": "ACTIVATION_JOINT_TOP_K", "decoder_span": 2, "scales": "SCALES_TIED", "micro_batches": 4},
    "relu": {
        "activation": "ACTIVATION_RELU",
        "top_k": 0,
        "sparsity_coeff": 0.01,
        "sparsity_scale": 4.0,
        "moments": "MOMENTS_BFLOAT16",
        "parameters": "PARAMETER_TYPE_BFLOAT16",
    },
}


@pytest.mark.parametrize("name", CASES)
def test_recipe_is_trained_evaluated_and_exported(rig: Rig, name: str) -> None:
    """The loss falls; the exported thresholds keep L0; layers beyond the window have no decoders."""
    rig.create_run(name, spec_of(**CASES[name]))
    rig.train(name, 2)
    metrics = rig.metrics(name)
    assert metrics[-1]["reconstruction_loss"] < metrics[0]["reconstruction_loss"]
    assert any(entry["aux_loss"] > 0 for entry in metrics) == ("aux_top_k" in CASES[name])
    done = subprocess.run(
        [sys.executable, "-m", "weft_trainer.worker.export"],
        env=rig.environment(name, WEFT_WORKER_CHECKPOINT_STEP="12", WEFT_WORKER_TRANSCODER=name),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    store = open_store(rig.bucket_url)
    manifest, _ = read_json(store, f"transcoders/{name}/manifest.json")
    assert manifest["dtype"] == "float32"
    exported, trained = manifest["threshold_evaluation"], manifest["evaluation"]
    assert (manifest["activation"], manifest.get("top_k")) == (
        ("joint_top_k", 4) if name == "joint" else ("threshold", None)
    )
    assert sum(exported["l0_by_layer"]) == pytest.approx(sum(trained["l0_by_layer"]), rel=0.2)
    if name != "joint":
        assert exported["explained_variance"] == pytest.approx(trained["explained_variance"], abs=1e-5)
    for layer in range(NUM_LAYERS):
        encoder = load(store.get(f"transcoders/{name}/W_enc_{layer}.safetensors"))
        assert (encoder[f"threshold_{layer}"] == 0).all() == (name == "relu")
        assert (f"rank_norm_{layer}" in encoder) == (name == "joint")
        decoder = load(store.get(f"transcoders/{name}/W_dec_{layer}.safetensors"))[f"W_dec_{layer}"]
        num_targets = min(CASES[name].get("decoder_span", NUM_LAYERS), NUM_LAYERS - layer)
        assert decoder.shape[1] == num_targets
        assert all(decoder[:, target].any() for target in range(num_targets))
