"""
What recipes that count have in common: no thresholds, no sparsity loss, dead features revived by AuxK.

Source of AuxK's number and weight: Gao et al. 2024, "Scaling and evaluating sparse autoencoders".
"""

from __future__ import annotations

from weft_clt.config import Activation, FeatureConfig, LossConfig, OptimizerConfig, TrainingConfig
from weft_clt.recipes.recipe import RunSize, warmup_within

__all__ = ["counting_config", "counting_features", "counting_loss"]

_AUX_TOP_K, _AUX_COEFF = 512, 1 / 32


def counting_features(activation: Activation, num_features: int, top_k: int) -> FeatureConfig:
    """Return features of which so many are active."""
    return FeatureConfig(
        num_features=num_features,
        activation=activation,
        top_k=top_k,
        threshold_init=0.0,
        bandwidth=0.0,
        gradient_through_threshold=False,
    )


def counting_loss(aux_top_k: int = 0) -> LossConfig:
    """Return the loss of a model that counts: the squared error and, with `aux_top_k`, AuxK."""
    return LossConfig(
        sparsity_coeff=0.0,
        sparsity_scale=0.0,
        sparsity_ramp_share=0.0,
        preact_coeff=0.0,
        aux_top_k=aux_top_k,
        aux_coeff=_AUX_COEFF if aux_top_k else 0.0,
    )


def counting_config(size: RunSize, activation: Activation, *, learning_rate: float, beta1: float) -> TrainingConfig:
    """Return a run with AuxK, whose warm-up takes at most a tenth and whose decay takes a fifth of it."""
    return TrainingConfig(
        features=counting_features(activation, size.num_features, size.top_k),
        loss=counting_loss(min(_AUX_TOP_K, size.num_features)),
        optimizer=OptimizerConfig(
            learning_rate=learning_rate,
            warmup_steps=warmup_within(1000, size),
            decay_share=0.2,
            beta1=beta1,
            beta2=0.999,
            clip_norm=1.0,
        ),
        batch=size.batch(),
        mesh=size.mesh(),
        records=size.records(),
    )
