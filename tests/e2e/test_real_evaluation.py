"""A short run on the real model, evaluated by its services, beside transformers' own model and dense decoders."""

import json
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
from embedded_weft import Embedded
from replacement_oracle import Reconstruct, oracle
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from weft.activations.v1.service_pb2_grpc import ActivationServiceStub
from weft.cache.v1 import service_pb2 as cache_rpc
from weft.cache.v1.service_pb2_grpc import CacheServiceStub
from weft_clt.parameters import pair_index
from weft_trainer.worker.model_passes import HeldOut, read_held_out

pytestmark = [pytest.mark.e2e, pytest.mark.real, pytest.mark.timeout(900)]

MODEL, NUM_LAYERS, D_MODEL = "smollm2-135m-instruct", 30, 576
NUM_STEPS, TOP_K = 4, 16


@pytest.fixture(scope="module")
def run(make_embedded: Callable[[Callable[[Path], None]], Embedded], models_dir: Path) -> Embedded:
    """Services over the real model, a dataset of short documents, and a run of a few steps."""

    def prepare(root: Path) -> None:
        root.mkdir()
        (root / "models").symlink_to(models_dir.resolve())

    made = make_embedded(prepare)
    corpus = made.folder / "corpus"
    corpus.mkdir()
    for name, text in list(topics.items())[:40]:
        (corpus / f"{name}.txt").write_text(text[:250])
    for command in (
        f"harvests create d --model {MODEL} --text corpus --num-tokens 700 --held-out-share 0.2",
        f"runs create r --dataset d --num-features 64 --top-k {TOP_K} --step-tokens 256 --num-steps {NUM_STEPS}",
    ):
        result = made.weft(*command.split(), timeout_s=400)
        assert result.returncode == 0, result.stderr
    return made


def dense(run: Embedded) -> Reconstruct:
    """What the checkpoint's weights write to a layer, in the units that the dataset's statistics give."""
    state = load_file(run.layout.root / f"bucket/runs/r/checkpoints/{NUM_STEPS:08d}/rank0-of-1.safetensors")
    with run.channel("cache") as channel:
        dataset = CacheServiceStub(channel).GetDataset(cache_rpc.GetDatasetRequest(name="datasets/d"), timeout=60)
    scale = [(D_MODEL**0.5 / each.input.mean_norm, D_MODEL**0.5 / each.output.mean_norm) for each in dataset.statistics]

    def reconstruct(layer: int, inputs: list[Tensor]) -> Tensor:
        out = state["b_dec"][layer].expand_as(inputs[0])
        for source, x in enumerate(inputs):
            preact = (x * scale[source][0]) @ state["w_enc"][source].T + state["b_enc"][source]
            smallest = preact.sort(dim=-1, descending=True).values[..., TOP_K - 1 : TOP_K]
            acts = torch.where(preact >= smallest, preact, 0.0).relu()
            out = out + acts @ state["w_dec"][pair_index(NUM_LAYERS, source, layer)]
        return out / scale[layer][1]

    return reconstruct


def check(found: dict[str, Any], wanted: dict[str, float]) -> None:
    """Compare a score; rounding moves what TopK selects here and there, and a prediction or two with it."""
    assert found["top1Agreement"] == pytest.approx(wanted["top1_agreement"], abs=2.1 / wanted["tokens"])
    assert found["crossEntropy"] == pytest.approx(wanted["cross_entropy"], rel=5e-3)
    assert found["klDivergence"] == pytest.approx(wanted["kl_divergence"], rel=1e-2)
    assert found["ablatedCrossEntropy"] == pytest.approx(wanted["ablated"], rel=1e-4)
    lost = wanted["ablated"] - wanted["model"]
    assert found["recovered"] == pytest.approx((wanted["ablated"] - wanted["cross_entropy"]) / lost, abs=0.02)


def test_evaluation_of_a_real_model_equals_hooks_on_it(run: Embedded, models_dir: Path) -> None:
    """Agreement, divergence and recovered cross-entropy, of layers and of all, are transformers' own, and are kept."""
    result = run.weft("runs", "evaluate", "r", "--replacement-tokens", "60", "--json", timeout_s=400)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)["replacement"]
    assert len(found["byLayer"]) == NUM_LAYERS
    with run.channel("activations") as channel:
        held_out: HeldOut = read_held_out(ActivationServiceStub(channel), "datasets/d", 60)
    model: Any = AutoModelForCausalLM.from_pretrained(models_dir / MODEL, dtype=torch.float32).eval()
    reconstruct = dense(run)
    for layers, score in (
        ([0], found["byLayer"][0]),
        ([17], found["byLayer"][17]),
        (range(NUM_LAYERS), found["all"]),
    ):
        wanted = oracle(model, held_out, layers, reconstruct)
        assert int(found["tokens"]) == wanted["tokens"]
        assert found["crossEntropy"] == pytest.approx(wanted["model"], rel=1e-4)
        check(score, wanted)
    # The model itself, one layer of zeros, all layers of zeros.
    assert found["crossEntropy"] < found["byLayer"][17]["ablatedCrossEntropy"] < found["all"]["ablatedCrossEntropy"]
    listed = json.loads(run.weft("runs", "checkpoints", "r", "--json").stdout)
    (checkpoint,) = [each for each in listed if each["name"].endswith(f"/{NUM_STEPS}")]
    assert checkpoint["evaluation"]["replacement"] == found
