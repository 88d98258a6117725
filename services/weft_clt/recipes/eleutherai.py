"""TopK from a decoder of zeros, with dead features revived, as EleutherAI trains transcoders."""

from __future__ import annotations

from weft_clt.config import Activation, FeatureConfig, LossConfig, OptimizerConfig, TrainingConfig
from weft_clt.recipes.recipe import Recipe, RunSize, warmup_within

__all__ = ["ELEUTHERAI"]

_RATE, _RATE_FEATURES = 2e-4, 1 << 14


def _make(size: RunSize) -> TrainingConfig:
    return TrainingConfig(
        features=FeatureConfig(
            num_features=size.num_features,
            activation=Activation.TOP_K,
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
            learning_rate=_RATE / (size.num_features / _RATE_FEATURES) ** 0.5,
            warmup_steps=warmup_within(1000, size),
            decay_share=0.2,
            beta1=0.0,
            beta2=0.999,
            clip_norm=1.0,
        ),
        batch=size.batch(),
        mesh=size.mesh(),
        records=size.records(),
    )


ELEUTHERAI = Recipe(
    name="eleutherai",
    summary="TopK, AuxK, learning rate 2e-4 / sqrt(F / 16,384), no first moment",
    source="EleutherAI/clt-training (sparsify) at cf9821f; AuxK: Gao et al. 2024",
    input_hook="mlp_in",
    deviations=(
        "features write to all later layers and each layer has its own k; decoder rows are not brought to unit length; "
        "the loss is the squared error, not its share of the variance; AuxK, off by default there, has the weight and "
        "k of Gao et al.; warm-up takes at most a tenth of the run, and the last 20 % decay"
    ),
    make=_make,
)
