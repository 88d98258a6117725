"""
How a job becomes weights: weft's Trainer in this process, CLT-Forge's trainer in a process and environment of its own.

Shapes: N tokens of a split, T of a step, L layers, D d_model.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from weft_activations.core.ports import Split
from weft_clt.config import Activation, TrainingConfig
from weft_clt.kernels import CpuKernels
from weft_clt.mesh import Mesh, SingleAxis
from weft_clt.normalization import Normalization
from weft_clt.trainer import Batch, Trainer

from .arms import Job
from .evaluator import Selection, Weights
from .tokens import TokenData, deal

__all__ = ["PeerEnvironment", "train_clt_forge", "train_weft", "weights_of"]

_SELECTIONS = {Activation.TOP_K: Selection.TOP_K, Activation.JOINT_TOP_K: Selection.JOINT_TOP_K}


@dataclass(frozen=True)
class PeerEnvironment:
    """
    Where CLT-Forge's code is, and the Python that runs it.

    Args:
        tree: Its working tree.
    """

    tree: Path
    python: str


def weights_of(trainer: Trainer) -> Weights:
    """Return a whole model's weights, and how it selects outside of training."""
    features, params = trainer.config.features, trainer.params
    selection = _SELECTIONS.get(features.activation, Selection.THRESHOLD)
    threshold_LF = params.threshold_LS
    return Weights(
        params.w_enc_LSD, params.b_enc_LS, threshold_LF, params.w_dec_PFC, params.b_dec_LC, selection, features.top_k
    )


def _order(data: TokenData, config_steps: int, step_tokens: int, seed: int) -> NDArray[np.int64]:
    return deal(data.size.train_tokens, num_steps=config_steps, step_tokens=step_tokens, seed=seed)


def train_weft(job: Job, data: TokenData) -> tuple[Weights, float]:
    """Train one rank in memory; return the weights and the seconds of all steps."""
    config = TrainingConfig.from_spec(job.conditions["spec"])
    num_layers, d_model = data.size.num_layers, data.d_model
    means = data.means()
    units = Normalization(np.ones(num_layers), np.ones(num_layers), *means)
    trainer = Trainer(
        config, units, Mesh(SingleAxis(), SingleAxis()), CpuKernels(), num_layers=num_layers, d_model=d_model
    )
    inputs_NLD, targets_NLD = data.read(Split.TRAIN)
    step_tokens = config.batch.step_tokens
    started_s = time.perf_counter()
    for chosen_T in _order(data, config.batch.num_steps, step_tokens, job.seed):
        inputs_LTD, targets_LTD = (
            torch.from_numpy(stream_NLD[chosen_T]).float().transpose(0, 1).contiguous()
            for stream_NLD in (inputs_NLD, targets_NLD)
        )
        trainer.train_step(Batch(inputs_LTD, targets_LTD, step_tokens))
    return weights_of(trainer), time.perf_counter() - started_s


def train_clt_forge(job: Job, data: TokenData, peer: PeerEnvironment, *, threads: int) -> tuple[Weights, float]:
    """
    Train by CLT-Forge's trainer over the same tokens in the same order; return the weights and the seconds of training.

    Raises:
        SystemExit: It failed; what it said stands above.
    """
    settings = job.conditions["settings"]
    step_tokens = settings["train_batch_size_tokens"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        order = _order(data, settings["total_training_tokens"] // step_tokens, step_tokens, job.seed)
        np.save(folder / "order.npy", order)
        asked = {
            "tree": str(peer.tree),
            "inputs": str(data.path(Split.TRAIN, "inputs")),
            "targets": str(data.path(Split.TRAIN, "outputs")),
            "order": str(folder / "order.npy"),
            "folder": str(folder),
            "threads": threads,
            "seed": job.seed,
            "settings": settings,
        }
        script = Path(__file__).with_name("in_clt_forge.py")
        done = subprocess.run([peer.python, str(script), json.dumps(asked)], stdout=sys.stderr, check=False)
        if done.returncode:
            raise SystemExit(f"CLT-Forge ended with {done.returncode}; what it said stands above.")
        seconds = float(json.loads((folder / "answer.json").read_text())["seconds"])
        return Weights.of_clt_forge(folder), seconds
