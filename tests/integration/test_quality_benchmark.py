"""The benchmark of training quality, from the real model's activations to its rows, at a tiny size."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.training.quality.arms import ARMS, PEER_ARMS
from benchmarks.training.quality.tokens import deal
from plotted import num_dots

pytestmark = [pytest.mark.real, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
BENCHMARK = ROOT / "benchmarks" / "training" / "bench_quality.py"
MODEL = Path(os.environ.get("WEFT_TEST_MODELS_DIR", ROOT / ".weft" / "models")) / "smollm2-135m-instruct"

STAND_IN = {
    "__init__.py": "",
    "training/__init__.py": "",
    # As strict as its own: an unknown field is refused.
    "config.py": """
from dataclasses import dataclass

@dataclass
class CLTConfig:
    n_layers: int
    d_in: int
    d_latent: int
    seed: int

@dataclass
class CLTTrainingRunnerConfig:
    device: str
    dtype: str
    seed: int
    d_in: int
    d_latent: int
    distributed_setup: str
    log_to_wandb: bool
    logger_verbose: bool
    n_checkpoints: int
    total_training_tokens: int
    train_batch_size_tokens: int
    lr: float
    lr_warm_up_steps: int
    lr_decay_steps: int
    l0_coefficient: float
    l0_warm_up_steps: int
    l0_warm_up_type: str
    dead_penalty_coef: float
    adam_beta1: float
    adam_beta2: float
    jumprelu_init_threshold: float
    jumprelu_bandwidth: float

    def create_sub_config(self, kind, n_layers):
        return kind(n_layers, self.d_in, self.d_latent, self.seed)
""",
    "clt.py": """
import torch
from safetensors.torch import save_file

class CLT:
    def __init__(self, cfg):
        torch.manual_seed(cfg.seed)
        layers, pairs = cfg.n_layers, cfg.n_layers * (cfg.n_layers + 1) // 2
        self.W_enc = torch.randn(layers, cfg.d_in, cfg.d_latent)
        self.b_enc = torch.zeros(layers, cfg.d_latent)
        self.log_threshold = torch.full((layers, cfg.d_latent), -3.5)
        self.W_dec = torch.zeros(pairs, cfg.d_latent, cfg.d_in)
        self.b_dec = torch.zeros(pairs, cfg.d_in)

    def save_model(self, path):
        names = ("W_enc", "b_enc", "log_threshold", "W_dec", "b_dec")
        save_file({name: getattr(self, name) for name in names}, path + "/clt_weights.safetensors")
""",
    # Learns nothing but the mean target, which tells what it was given.
    "training/clt_trainer.py": """
import torch
import wandb
from tqdm import tqdm
from clt_forge.training.activations_store import ActivationsStore

class CLTTrainer:
    def __init__(self, clt, activations_store, cfg, save_checkpoint_fn):
        assert isinstance(activations_store, ActivationsStore)
        self.clt, self.store, self.cfg, self.save = clt, activations_store, cfg, save_checkpoint_fn

    def fit(self):
        first = [next(iter(self.store))[0] for _ in tqdm(range(5), desc="biases")]
        self.clt._initialize_b_enc(torch.einsum("bnd,ndk->bnk", torch.cat(first), self.clt.W_enc))
        given = [targets for _, targets in self.store]
        assert len(given) * self.cfg.train_batch_size_tokens == self.cfg.total_training_tokens
        mean, own = torch.cat(given).mean(0), 0
        for layer in range(len(mean)):
            self.clt.b_dec[own] = mean[layer]
            own += len(mean) - layer
        self.save(trainer=self, checkpoint_name="final")
""",
}
"""CLT-Forge's interface, as far as the benchmark uses it."""


def _bench(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(BENCHMARK), "--quick", "--threads", "1", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def _points(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "points.jsonl").read_text().splitlines()]


def test_quality_benchmark_measures_all_sides_and_goes_on_where_it_was(tmp_path: Path) -> None:
    """Every arm has its points, the peer trained on exactly our tokens, and a torn file costs only what it lost."""
    tree, folder = tmp_path / "tree", tmp_path / "quality"
    for name, text in STAND_IN.items():
        path = tree / "src" / "clt_forge" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    page, output = tmp_path / "docs" / "benchmarks" / "quality.md", tmp_path / "rows.json"
    page.parent.mkdir(parents=True)
    page.write_text((ROOT / "docs" / "benchmarks" / "quality.md").read_text())
    arguments = (
        "--seeds", "1", "--model", str(MODEL), "--folder", str(folder), "--output", str(output), "--page", str(page),
        "--clt-forge", str(tree), "--top-k", "2,8",
    )  # fmt: skip
    done = _bench(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    points = _points(folder)
    counting = sum(arm.setting == "k" for arm in ARMS)
    # Lambda has two values for the peer, and two around them for ours.
    assert len(points) == 2 * len(PEER_ARMS) + 2 * counting + 4 * (len(ARMS) - counting)
    for point in points:
        quality = point["quality"]
        assert quality["tokens"] == 128
        assert len(quality["explained_variance_by_layer"]) == 2
        if point["setting"] == "k" and point["arm"].startswith("top-k"):
            assert quality["l0"] == pytest.approx(point["value"], rel=0.05)
    (tokens,) = folder.glob("tokens-*")
    train_NLD, held_out_NLD = (
        np.load(tokens / f"{split}-outputs.npy").astype(float) for split in ("train", "held_out")
    )
    norm_L = np.linalg.norm(train_NLD, axis=2).mean(0)
    np.testing.assert_allclose(norm_L, train_NLD.shape[2] ** 0.5, rtol=1e-3)
    mean_LD = train_NLD[deal(512, num_steps=10, step_tokens=64, seed=1).ravel()].mean(0)
    error_L = ((held_out_NLD - mean_LD) ** 2).sum((0, 2))
    explained_L = 1 - error_L / ((held_out_NLD - held_out_NLD.mean(0)) ** 2).sum((0, 2))
    for point in points[: 2 * len(PEER_ARMS)]:
        assert point["side"] == "CLT-Forge"
        np.testing.assert_allclose(point["quality"]["explained_variance_by_layer"], explained_L, rtol=1e-3, atol=1e-5)
        assert 8 < point["quality"]["l0"] < 24
    rows = json.loads(output.read_text())
    assert {row["unit"] for row in rows} == {"share of variance"}
    assert all(row.keys() == {"name", "ours", "peer", "ratio", "unit", "conditions"} for row in rows)
    assert "| weft | batch-top-k, AuxK | k 8 |" in page.read_text()
    assert num_dots((tmp_path / "docs" / "images" / "quality-pareto.svg").read_text()) == len(points)

    lines = (folder / "points.jsonl").read_text().splitlines(keepends=True)
    (folder / "points.jsonl").write_text("".join(lines[:-2]) + lines[-2][:40])
    again = _bench(*arguments)
    assert again.returncode == 0, again.stdout + again.stderr
    assert _points(folder)[:-2] == points[:-2]
    assert [point["digest"] for point in _points(folder)] == [point["digest"] for point in points]
    assert json.loads(output.read_text()) == rows


def test_quality_benchmark_refuses_a_folder_that_is_not_clt_forges(tmp_path: Path) -> None:
    """It says what it looked for."""
    done = _bench("--clt-forge", str(tmp_path))
    assert done.returncode == 1
    assert "src/clt_forge/training/clt_trainer.py" in done.stderr
