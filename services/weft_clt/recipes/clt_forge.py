"""JumpReLU without the gradient through the threshold, as CLT-Forge trains GPT-2 and Llama-3.2-1B."""

from __future__ import annotations

from weft_clt.config import Activation, FeatureConfig, LossConfig, OptimizerConfig, TrainingConfig
from weft_clt.piecewise import Piece, Shape
from weft_clt.recipes.recipe import Recipe, RunSize, warmup_within

__all__ = ["CLT_FORGE_GPT2", "CLT_FORGE_LLAMA"]


def _features(size: RunSize) -> FeatureConfig:
    return FeatureConfig(
        num_features=size.num_features,
        activation=Activation.JUMP_RELU,
        top_k=0,
        threshold_init=0.03,
        bandwidth=1.0,
        gradient_through_threshold=False,
    )


def _optimizer(learning_rate: float, size: RunSize) -> OptimizerConfig:
    return OptimizerConfig(
        learning_rate=learning_rate,
        warmup_steps=warmup_within(1000, size),
        decay_share=0.05,
        beta1=0.9,
        beta2=0.999,
        clip_norm=1.0,
    )


def _make_gpt2(size: RunSize) -> TrainingConfig:
    return TrainingConfig(
        features=_features(size),
        loss=LossConfig(sparsity_coeff=2.0, sparsity_scale=4.0, sparsity_ramp_share=0.7, preact_coeff=1e-5),
        optimizer=_optimizer(4e-4, size),
        batch=size.batch(),
        mesh=size.mesh(),
        records=size.records(),
    )


def _make_llama(size: RunSize) -> TrainingConfig:
    return TrainingConfig(
        features=_features(size),
        loss=LossConfig(
            sparsity_coeff=12.0,
            sparsity_scale=4.0,
            sparsity_ramp_share=0.0,
            preact_coeff=1e-5,
            sparsity_schedule=(Piece(0.9, Shape.COSINE, 1.0), Piece(1.0, Shape.CONSTANT, 1.0)),
        ),
        optimizer=_optimizer(2e-4, size),
        batch=size.batch(),
        mesh=size.mesh(),
        records=size.records(),
    )


_DEVIATIONS = (
    "thresholds are raw, not logarithms; float32; the gradient is clipped by its norm over all ranks; dead features "
    "are counted in tokens; the run does not stop at an L0; warm-up takes at most a tenth of the run; the learning "
    "rate falls over the last 5 %, there over the 5 % after lambda's ramp, and is 0 from then on"
)

CLT_FORGE_GPT2 = Recipe(
    name="clt-forge-gpt2",
    summary="JumpReLU, lambda 2 by a line over 70 % of the run, learning rate 4e-4",
    source="LLM-Interp/CLT-Forge, runners/training/gpt2/config.py at dcf4cc8; arXiv 2603.21014",
    input_hook="resid_mid",
    deviations=_DEVIATIONS,
    make=_make_gpt2,
)
CLT_FORGE_LLAMA = Recipe(
    name="clt-forge-llama-1b",
    summary="JumpReLU, lambda 12 by half a cosine over 90 % of the run, learning rate 2e-4",
    source="LLM-Interp/CLT-Forge, runners/training/llama1b/config.py at dcf4cc8; arXiv 2603.21014",
    input_hook="resid_mid",
    deviations=_DEVIATIONS
    + "; lambda does not wait 1,000 steps, and a step is one batch, not four of 128 tokens a rank",
    make=_make_llama,
)
