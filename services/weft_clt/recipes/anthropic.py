"""JumpReLU with a tanh sparsity loss, as Anthropic trains cross-layer transcoders."""

from __future__ import annotations

from weft_clt.config import Activation, FeatureConfig, LossConfig, OptimizerConfig, TrainingConfig
from weft_clt.recipes.recipe import Recipe, RunSize

__all__ = ["ANTHROPIC"]


def _make(size: RunSize) -> TrainingConfig:
    return TrainingConfig(
        features=FeatureConfig(
            num_features=size.num_features,
            activation=Activation.JUMP_RELU,
            top_k=0,
            threshold_init=0.1,
            bandwidth=2.0,
            gradient_through_threshold=True,
        ),
        loss=LossConfig(sparsity_coeff=20.0, sparsity_scale=4.0, sparsity_ramp_share=1.0, preact_coeff=3e-6),
        optimizer=OptimizerConfig(
            learning_rate=2e-4, warmup_steps=0, decay_share=0.2, beta1=0.9, beta2=0.999, clip_norm=1.0
        ),
        batch=size.batch(),
        mesh=size.mesh(),
        records=size.records(),
    )


ANTHROPIC = Recipe(
    name="anthropic",
    summary="JumpReLU, tanh sparsity over the whole run, gradient through the threshold",
    source="Anthropic, circuits updates of January 2025, and Ameisen et al. 2025, methods",
    input_hook="resid_mid",
    deviations=(
        "thresholds are raw, not logarithms; the learning rate, which is published only as proportional to "
        "1/sqrt(FLOPs), is CLT-Forge's for Llama-1B, and so are Adam's decay rates and clipping; lambda is 20, which "
        "others set to 5: it decides L0, so try both"
    ),
    make=_make,
)
