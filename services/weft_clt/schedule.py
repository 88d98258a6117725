"""
Coefficients that change from step to step; steps count from 1.

A schedule given as data is read at the middle of a step, so that neither the first nor the last step is at 0.
"""

from __future__ import annotations

from weft_clt.config import LossConfig, OptimizerConfig
from weft_clt.piecewise import value_at

__all__ = ["learning_rate", "sparsity_coeff"]


def learning_rate(config: OptimizerConfig, step: int, num_steps: int) -> float:
    """
    The schedule's pieces; or linear warm-up, a plateau, and a linear decay to zero one step after the last.

    >>> from weft_clt.config import OptimizerConfig
    >>> config = OptimizerConfig(1.0, warmup_steps=2, decay_share=0.4, beta1=0.9, beta2=0.999, clip_norm=1.0)
    >>> [learning_rate(config, step, 5) for step in range(1, 6)]
    [0.5, 1.0, 1.0, 1.0, 0.5]
    """
    if config.schedule:
        return config.learning_rate * value_at(config.schedule, (step - 0.5) / num_steps)
    factor = 1.0
    if step < config.warmup_steps:
        factor = step / config.warmup_steps
    decay_steps = config.decay_share * num_steps
    remaining = num_steps - step + 1
    if remaining < decay_steps:
        factor = min(factor, remaining / decay_steps)
    return config.learning_rate * factor


def sparsity_coeff(config: LossConfig, step: int, num_steps: int) -> float:
    """
    Lambda: the schedule's pieces; or linear from 0 over the first `sparsity_ramp_share` of the steps, then constant.

    >>> from weft_clt.config import LossConfig
    >>> config = LossConfig(sparsity_coeff=2.0, sparsity_scale=4.0, sparsity_ramp_share=0.5, preact_coeff=0.0)
    >>> [sparsity_coeff(config, step, 4) for step in range(1, 5)]
    [1.0, 2.0, 2.0, 2.0]
    """
    if config.sparsity_schedule:
        return config.sparsity_coeff * value_at(config.sparsity_schedule, (step - 0.5) / num_steps)
    ramp_steps = config.sparsity_ramp_share * num_steps
    return config.sparsity_coeff * (min(step / ramp_steps, 1.0) if ramp_steps > 0 else 1.0)
