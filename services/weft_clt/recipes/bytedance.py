"""One TopK over all layers of a token, ranked by value times decoder norm, as ByteDance trained Qwen3-8B's."""

from __future__ import annotations

from weft_clt.config import Activation, FeatureConfig, LossConfig, OptimizerConfig, TrainingConfig
from weft_clt.recipes.recipe import Recipe, RunSize, warmup_within

__all__ = ["BYTEDANCE"]


def _make(size: RunSize) -> TrainingConfig:
    return TrainingConfig(
        features=FeatureConfig(
            num_features=size.num_features,
            activation=Activation.JOINT_TOP_K,
            top_k=size.top_k,
            threshold_init=0.0,
            bandwidth=0.0,
            gradient_through_threshold=False,
        ),
        loss=LossConfig(
            sparsity_coeff=0.0,
            sparsity_scale=0.0,
            sparsity_ramp_share=0.0,
            preact_coeff=0.0,
            aux_top_k=min(512, size.num_features),
            aux_coeff=1 / 32,
        ),
        optimizer=OptimizerConfig(
            learning_rate=2e-4,
            warmup_steps=warmup_within(1000, size),
            decay_share=0.2,
            beta1=0.9,
            beta2=0.999,
            clip_norm=1.0,
        ),
        batch=size.batch(),
        mesh=size.mesh(),
        records=size.records(),
    )


BYTEDANCE = Recipe(
    name="bytedance",
    summary="one TopK over all layers of a token, ranked by value times decoder norm; AuxK",
    source="ByteDance-Seed, cross-layer transcoder of Qwen3-8B",
    input_hook="",
    deviations=(
        "published are the ranking, the joint count and leaving out tokens of 20 times the mean norm, which a harvest "
        "does (max_norm_ratio); optimiser, schedule and AuxK are weft's choice; top_k is the mean over layers"
    ),
    make=_make,
)
