"""
Losses of a cross-layer transcoder and their gradients, by hand.

Source: Ameisen et al. 2025, methods, and the circuits updates of January 2025. Deviations: a feature exactly at its
threshold is inactive; the gradient also flows from the sparsity and pre-activation losses into the decoder's norms.
Every function works on a list of entries of one layer, so that absent (token, feature) pairs cost nothing.
Shapes: M entries that a rank lists of one layer, T tokens, S features of this rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weft_clt.kernels.sorted_lists import add_entries

__all__ = ["PreactLoss", "SparsityLoss", "jump_relu_backward", "preact_loss", "sparsity_loss"]


@dataclass(frozen=True)
class SparsityLoss:
    """The tanh sparsity loss over a list of entries."""

    value: Tensor
    """Scalar."""
    grad_acts_M: Tensor
    grad_norms_S: Tensor


def sparsity_loss(acts_M: Tensor, feature_M: Tensor, norms_S: Tensor, *, scale: float, coeff: float) -> SparsityLoss:
    """
    Lambda times the sum of tanh(scale * norm * activation), with its gradients.

    Args:
        acts_M: Post-activation, >= 0; an entry of 0 adds nothing and still has a gradient.
        feature_M: Feature of each entry, int64.
        norms_S: Decoder norms over all targets.
        scale: c.
        coeff: Lambda over the number of tokens of the step.
    Collectives: none; the caller sums over ranks.

    >>> loss = sparsity_loss(torch.ones(2), torch.tensor([0, 1]), torch.ones(2), scale=1.0, coeff=0.5)
    >>> round(float(loss.value), 4)
    0.7616
    """
    norms_M = norms_S[feature_M]
    tanh_M = torch.tanh(scale * norms_M * acts_M)
    slope_M = coeff * scale * (1 - tanh_M.square())
    grad_norms_S = torch.zeros_like(norms_S)
    add_entries(grad_norms_S, feature_M, slope_M * acts_M)
    return SparsityLoss(coeff * tanh_M.sum(), slope_M * norms_M, grad_norms_S)


def jump_relu_backward(
    preact_M: Tensor, threshold_M: Tensor, grad_acts_M: Tensor, *, bandwidth: float, through_threshold: bool
) -> tuple[Tensor, Tensor]:
    """
    Return the gradients of JumpReLU's pre-activations and thresholds, entry by entry.

    Args:
        grad_acts_M: The gradient that arrives at the post-activations.
        bandwidth: Width of the rectangle that stands for the derivative of the step.
        through_threshold: Also pass it on to the pre-activation, as Anthropic describes.
    """
    near_M = ((preact_M - threshold_M).abs() < bandwidth / 2).to(preact_M.dtype)
    pseudo_M = (threshold_M / bandwidth) * near_M * grad_acts_M
    grad_preact_M = (preact_M > threshold_M).to(preact_M.dtype) * grad_acts_M
    if through_threshold:
        grad_preact_M += pseudo_M
    return grad_preact_M, -pseudo_M


@dataclass(frozen=True)
class PreactLoss:
    """The pre-activation loss of one layer. Every pre-activation below its threshold has its feature's gradient."""

    value: Tensor
    """Scalar."""
    grad_preact_S: Tensor
    grad_norms_S: Tensor


def preact_loss(preact_TS: Tensor, threshold_S: Tensor, norms_S: Tensor, *, coeff: float) -> PreactLoss:
    """
    Lambda_P times the sum of ReLU(threshold - preact) * norm, with its gradients; it revives silent features.

    A threshold's gradient is the sum of those of its feature's pre-activations, with the other sign.

    Args:
        coeff: Lambda_P over the number of tokens of the step.
    Collectives: none; the caller sums over ranks.
    """
    gap_S = torch.relu(threshold_S - preact_TS).sum(0)
    return PreactLoss(value=coeff * (gap_S * norms_S).sum(), grad_preact_S=-coeff * norms_S, grad_norms_S=coeff * gap_S)
