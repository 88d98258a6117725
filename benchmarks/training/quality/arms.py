"""
What is trained, and with which settings of its sparsity.

An arm is a recipe; each of its settings, with each seed, is a job, which ends as a point: an L0 and an explained
variance. Weft's arms that count take the optimiser of `weft demo`. The recipe of CLT-Forge is there three times: in its
own code at its published learning rate, in its own code at the rate that weft's other arms have, and in weft.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from weft_clt.config import Activation, LossConfig, TrainingConfig
from weft_clt.recipes import RunSize, demo, find_recipe

__all__ = ["ARMS", "PEER", "PEER_ARMS", "Arm", "Job", "PeerArm", "Training", "own_jobs", "peer_jobs"]

PEER = "CLT-Forge"
_OUR_RATE = 2e-3
_DATASET = "datasets/bench"
_AUX_TOP_K, _AUX_COEFF = 512, 1 / 32


@dataclass(frozen=True)
class Training:
    """What all sides have in common."""

    num_features: int
    num_steps: int
    step_tokens: int

    @property
    def num_tokens(self) -> int:
        """Tokens that a run sees."""
        return self.num_steps * self.step_tokens


@dataclass(frozen=True)
class Arm:
    """
    A recipe of weft's.

    Args:
        setting: `k`, features a token and layer, or `lambda`, the sparsity loss's weight at its peak.
        make: Gives the configuration for a setting and a seed.
    """

    name: str
    setting: str
    make: Callable[[Training, float, int], TrainingConfig]


@dataclass(frozen=True)
class PeerArm:
    """CLT-Forge's recipe for GPT-2 in its own code, at a learning rate."""

    name: str
    learning_rate: float


@dataclass(frozen=True)
class Job:
    """
    A run.

    Args:
        side: `weft` or CLT-Forge.
        value: Of its arm's setting.
        conditions: All that decides its outcome, plain JSON.
    """

    side: str
    arm: str
    setting: str
    value: float
    seed: int
    conditions: dict[str, Any]

    @property
    def digest(self) -> str:
        """Names its outcome."""
        return hashlib.sha256(json.dumps(self.conditions, sort_keys=True).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return f"{self.side}, {self.arm}, {self.setting} {self.value:g}, seed {self.seed}"


def _counting(activation: Activation, *, aux: bool) -> Callable[[Training, float, int], TrainingConfig]:
    def make(training: Training, top_k: float, seed: int) -> TrainingConfig:
        config = demo(_DATASET)
        config = replace(
            config,
            features=replace(
                config.features, num_features=training.num_features, activation=activation, top_k=round(top_k)
            ),
            mesh=replace(config.mesh, feature_ranks=1),
        )
        config = _sized(config, training, seed)
        return replace(config, loss=_with_aux(config.loss, training)) if aux else config

    return make


def _with_aux(loss: LossConfig, training: Training) -> LossConfig:
    return replace(loss, aux_top_k=min(_AUX_TOP_K, training.num_features), aux_coeff=_AUX_COEFF)


def _sized(config: TrainingConfig, training: Training, seed: int) -> TrainingConfig:
    batch = replace(
        config.batch,
        num_steps=training.num_steps,
        step_tokens=training.step_tokens,
        # Short runs: with the 20,000 tokens of the demo some would end before a feature counts as dead.
        dead_after_tokens=max(1, training.num_tokens // 8),
        seed=seed,
    )
    warmup_steps = min(config.optimizer.warmup_steps, training.num_steps // 10)
    return replace(config, batch=batch, optimizer=replace(config.optimizer, warmup_steps=warmup_steps))


def _clt_forge(training: Training, sparsity_coeff: float, seed: int) -> TrainingConfig:
    size = RunSize(_DATASET, training.num_features, training.num_steps, training.step_tokens, seed=seed)
    config = find_recipe("clt-forge-gpt2").make(size)
    return _sized(replace(config, loss=replace(config.loss, sparsity_coeff=sparsity_coeff)), training, seed)


def _jump_relu(training: Training, sparsity_coeff: float, seed: int) -> TrainingConfig:
    """CLT-Forge's losses; the optimiser of `weft demo`, and the gradient through the threshold."""
    config = _clt_forge(training, sparsity_coeff, seed)
    optimizer = demo(_DATASET).optimizer
    features = replace(config.features, gradient_through_threshold=True)
    return _sized(replace(config, features=features, optimizer=optimizer), training, seed)


ARMS = (
    Arm("top-k", "k", _counting(Activation.TOP_K, aux=False)),
    Arm("top-k, AuxK", "k", _counting(Activation.TOP_K, aux=True)),
    Arm("batch-top-k", "k", _counting(Activation.BATCH_TOP_K, aux=False)),
    Arm("batch-top-k, AuxK", "k", _counting(Activation.BATCH_TOP_K, aux=True)),
    Arm("joint-top-k", "k", _counting(Activation.JOINT_TOP_K, aux=False)),
    Arm("joint-top-k, AuxK", "k", _counting(Activation.JOINT_TOP_K, aux=True)),
    Arm("jump-relu", "lambda", _jump_relu),
    Arm("clt-forge-gpt2", "lambda", _clt_forge),
)
PEER_ARMS = (PeerArm("its recipe", 4e-4), PeerArm("its recipe, rate 2e-3", _OUR_RATE))


def _peer_settings(training: Training, arm: PeerArm, sparsity_coeff: float) -> dict[str, Any]:
    """Fields of its CLTTrainingRunnerConfig: those of its GPT-2 run, warm-ups as shares of the steps there are."""
    steps = training.num_steps
    return {
        "d_latent": training.num_features,
        "total_training_tokens": training.num_tokens,
        "train_batch_size_tokens": training.step_tokens,
        "lr": arm.learning_rate,
        "lr_warm_up_steps": min(1000, steps // 10),
        "lr_decay_steps": max(1, round(0.05 * steps)),
        "l0_coefficient": sparsity_coeff,
        "l0_warm_up_steps": min(round(0.7 * steps), steps - 1),
        "l0_warm_up_type": "linear",
        "dead_penalty_coef": 1e-5,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "jumprelu_init_threshold": 0.03,
        "jumprelu_bandwidth": 1.0,
    }


def peer_jobs(
    training: Training, tokens_digest: str, *, seeds: Sequence[int], sparsity_coeffs: Sequence[float]
) -> Iterator[Job]:
    """
    Yield CLT-Forge's runs, seed by seed.

    Args:
        tokens_digest: Of the tokens that all sides train on.
    """
    for seed in seeds:
        for arm in PEER_ARMS:
            for coeff in sparsity_coeffs:
                settings = _peer_settings(training, arm, coeff)
                conditions = {"side": PEER, "tokens": tokens_digest, "seed": seed, "settings": settings}
                yield Job(PEER, arm.name, "lambda", coeff, seed, conditions)


def own_jobs(
    training: Training,
    tokens_digest: str,
    *,
    seeds: Sequence[int],
    top_ks: Sequence[int],
    sparsity_coeffs: Sequence[float],
    arms: Sequence[Arm] = ARMS,
) -> Iterator[Job]:
    """
    Yield weft's runs, seed by seed, so that an interrupted benchmark has whole seeds.

    Args:
        tokens_digest: Of the tokens that all sides train on.
    """
    for seed in seeds:
        for arm in arms:
            for value in top_ks if arm.setting == "k" else sparsity_coeffs:
                spec = arm.make(training, value, seed).to_spec()
                conditions = {"side": "weft", "tokens": tokens_digest, "seed": seed, "spec": spec}
                yield Job("weft", arm.name, arm.setting, value, seed, conditions)
