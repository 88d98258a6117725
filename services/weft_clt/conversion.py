"""
A model that counts (TopK, joint TopK) as one with a threshold a feature (JumpReLU).

A feature's threshold is the smallest pre-activation with which it was selected on calibration tokens; all thresholds of
a layer are then multiplied by the one factor with which the layer is as active as it was: L0 is kept layer by layer.
BatchTopK needs none of this: its running threshold is one already.
Shapes: L layers, N calibration tokens, F features of a layer.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from weft_clt.config import Activation, FeatureConfig

__all__ = ["selections", "thresholds_from_selection"]


def selections(preact_LNF: Tensor, norms_LF: Tensor, features: FeatureConfig) -> Iterator[Tensor]:
    """
    Yield which entries a model that counts selects, boolean [N, F], layer by layer.

    Args:
        preact_LNF: Of every layer; one token's entries compete over layers for joint TopK.
        norms_LF: Decoder norms over all targets, which joint TopK ranks by.
    """
    bound_N1 = None
    if features.activation is Activation.JOINT_TOP_K:
        most = features.top_k * preact_LNF.shape[0]
        best_NK = preact_LNF.new_zeros(preact_LNF.shape[1], 0)
        for preact_NF, norms_F in zip(preact_LNF, norms_LF, strict=True):
            seen = torch.cat([best_NK, preact_NF * norms_F], 1)
            best_NK = torch.topk(seen, min(most, seen.shape[1]), dim=1, sorted=False).values
        bound_N1 = best_NK.amin(1, keepdim=True)
    for preact_NF, norms_F in zip(preact_LNF, norms_LF, strict=True):
        if bound_N1 is not None:
            score_NF = preact_NF * norms_F
            yield (score_NF >= bound_N1) & (score_NF > 0)
            continue
        kept_NK = torch.topk(preact_NF, min(features.top_k, preact_NF.shape[1]), dim=1)
        yield torch.zeros_like(preact_NF, dtype=torch.bool).scatter_(1, kept_NK.indices, kept_NK.values > 0)


def thresholds_from_selection(preact_NF: Tensor, selected_NF: Tensor) -> Tensor:
    """
    Return the thresholds of a layer, above which as many entries lie as were selected.

    A feature that was never selected gets its largest pre-activation, at least 0, so that it stays silent on these
    tokens. L0 is exact but for entries whose ratio to their threshold is the same.

    >>> preact_NF = torch.tensor([[3.0, 1.0], [2.0, 4.0], [1.5, 0.5]])
    >>> selected_NF = torch.tensor([[True, False], [False, True], [True, False]])
    >>> threshold_F = thresholds_from_selection(preact_NF, selected_NF)
    >>> int((preact_NF > threshold_F).sum())
    3
    """
    chosen_F = selected_NF.any(0)
    smallest_F = torch.where(selected_NF, preact_NF, torch.inf).amin(0)
    silent_F = preact_NF.amax(0).clamp(min=0)
    # What is selected is above 0, so a ratio of 0 or less never fires; factors are looked for among the rest.
    ratio_NF = torch.where(chosen_F, preact_NF / smallest_F, 0.0)
    ratio_M = ratio_NF[ratio_NF > 0].double()
    wanted = int(selected_NF.sum())
    if not wanted:
        return silent_F
    last = torch.kthvalue(ratio_M, ratio_M.shape[0] - wanted + 1).values
    below_M = ratio_M[ratio_M < last]
    next_ = below_M.max() if below_M.numel() else last.new_zeros(())
    factor = ((last + next_) / 2).to(preact_NF.dtype)
    return torch.where(chosen_F, smallest_F * factor, silent_F)
