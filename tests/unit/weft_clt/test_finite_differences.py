"""Gradients of every recipe against differences of a loss that is computed densely, in float64."""

from typing import Any

import numpy as np
import pytest
import torch
from clt_cases import NAMED, NUM_TOKENS, RECIPES, Oracle, config_of, gradients, some_dead, tokens, trainer_of
from torch import Tensor

from weft_clt.kernels import CpuKernels

STEP = 1e-6
EXACT = {"bandwidth": 1e-7, "gradient_through_threshold": False}
"""No entry within the band, so that the pseudo-derivative, which no difference shows, is 0."""


CASES = RECIPES | NAMED


@pytest.mark.parametrize("name", CASES)
def test_gradient_is_the_slope_of_the_loss(name: str) -> None:
    """Along random directions through every parameter tensor, one tensor at a time, slope and gradient agree."""
    case: dict[str, Any] = CASES[name]
    config = config_of(**case | (EXACT if case.get("bandwidth") else {}))
    trainer = trainer_of(config, CpuKernels())
    inputs, targets = tokens(0)
    coeff, dead = 0.7 * config.loss.sparsity_coeff, some_dead(config)
    oracle = Oracle.of(trainer.params)
    with torch.no_grad():
        fixed = [error.clone() for error in oracle.errors(inputs, targets, config)]

    def loss() -> float:
        with torch.no_grad():
            return float(torch.stack(oracle.losses(inputs, targets, config, coeff, dead, fixed)).sum())

    forward = trainer.engine.forward(*trainer.engine.gather(inputs, targets), dead_LF=dead)
    trainer.engine.backward(forward, step_tokens=NUM_TOKENS, sparsity_coeff=coeff)
    random = np.random.default_rng(2)
    for tensor_name, grad in gradients(trainer).items():
        leaves = oracle.leaves_of(tensor_name)
        grads = list(grad) if tensor_name == "w_dec" else [grad]
        directions = [torch.from_numpy(random.standard_normal(leaf.shape)) for leaf in leaves]
        slope = sum(float((g * d).sum()) for g, d in zip(grads, directions, strict=True))
        ends = []
        for sign in (1, -1):
            _move(leaves, directions, sign * STEP)
            ends.append(loss())
            _move(leaves, directions, -sign * STEP)
        assert (ends[0] - ends[1]) / (2 * STEP) == pytest.approx(slope, rel=1e-6, abs=1e-7), tensor_name
        assert (tensor_name == "threshold" and "BATCH" in str(config.features.activation)) or abs(slope) > 1e-6


def _move(leaves: list[Tensor], directions: list[Tensor], step: float) -> None:
    with torch.no_grad():
        for leaf, direction in zip(leaves, directions, strict=True):
            leaf += step * direction
