"""
One evaluator for all sides, in plain torch: encode, select, decode, compare. It shares no code with what trained them.

    h_l    = W_enc_l x_l + b_enc_l
    a_l    = h_l where it is selected, else 0
    yhat_t = sum of W_dec_{l,t}^T a_l over l <= t, + b_dec_t

Explained variance of a layer is 1 - (squared error) / (squared deviation of the targets from their mean over the same
tokens); of all layers the mean, and, as the total, the same quotient of the sums over layers.
Shapes: T tokens of a batch, L layers, F features of a layer, D d_model, P = L (L + 1) / 2 pairs of a source and a
target layer, source by source.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

__all__ = ["Quality", "Selection", "Weights", "evaluate"]


class Selection(StrEnum):
    """Which features are active."""

    THRESHOLD = "threshold"
    """Those above their threshold."""
    TOP_K = "top-k"
    """The largest k of a token and layer, where they are positive."""
    JOINT_TOP_K = "joint-top-k"
    """The largest k x L of a token by value times decoder norm, where they are positive."""


@dataclass(frozen=True)
class Weights:
    """A trained transcoder in the units of training."""

    w_enc_LFD: Tensor
    b_enc_LF: Tensor
    threshold_LF: Tensor | None
    w_dec_PFD: Tensor
    b_dec_LD: Tensor
    selection: Selection
    top_k: int = 0

    @property
    def num_layers(self) -> int:
        """L."""
        return self.b_enc_LF.shape[0]

    def to(self, dtype: torch.dtype) -> Weights:
        """Return them in another floating type."""
        threshold_LF = None if self.threshold_LF is None else self.threshold_LF.to(dtype)
        tensors = (self.w_enc_LFD, self.b_enc_LF, self.w_dec_PFD, self.b_dec_LD)
        w_enc_LFD, b_enc_LF, w_dec_PFD, b_dec_LD = (tensor.to(dtype) for tensor in tensors)
        return Weights(w_enc_LFD, b_enc_LF, threshold_LF, w_dec_PFD, b_dec_LD, self.selection, self.top_k)

    def pair(self, source: int, target: int) -> int:
        """Place of a decoder block among P."""
        return source * self.num_layers - source * (source - 1) // 2 + target - source

    def decoder_norms(self) -> Tensor:
        """Norms of decoder rows over all of a feature's targets, [L, F]."""
        layers = range(self.num_layers)
        return torch.stack(
            [
                sum(
                    (self.w_dec_PFD[self.pair(source, target)].square().sum(1) for target in layers[source:]),
                    start=torch.zeros_like(self.b_enc_LF[0]),
                ).sqrt()
                for source in layers
            ]
        )

    def activations(self, inputs_TLD: Tensor) -> Tensor:
        """Return what is active and 0 elsewhere, [T, L, F]."""
        preact_TLF = torch.einsum("tld,lfd->tlf", inputs_TLD, self.w_enc_LFD) + self.b_enc_LF
        if self.selection is Selection.THRESHOLD:
            assert self.threshold_LF is not None
            return preact_TLF * (preact_TLF > self.threshold_LF)
        score_TLF, most = preact_TLF, self.top_k
        if self.selection is Selection.JOINT_TOP_K:
            score_TLF = (preact_TLF * self.decoder_norms()).flatten(1)
            most = self.top_k * self.num_layers
        best = score_TLF.topk(most, dim=-1)
        kept_TLF = torch.zeros_like(score_TLF).scatter_(-1, best.indices, (best.values > 0).to(score_TLF.dtype))
        return preact_TLF * kept_TLF.view_as(preact_TLF)

    def predict(self, acts_TLF: Tensor, target: int) -> Tensor:
        """Return what is predicted at a layer, [T, D]."""
        predicted_TD = self.b_dec_LD[target].repeat(acts_TLF.shape[0], 1)
        for source in range(target + 1):
            predicted_TD.addmm_(acts_TLF[:, source], self.w_dec_PFD[self.pair(source, target)])
        return predicted_TD

    @classmethod
    def of_clt_forge(cls, folder: Path) -> Weights:
        """Read what CLT-Forge's `save_model` wrote: decoder biases a pair, thresholds as logarithms."""
        saved = load_file(folder / "clt_weights.safetensors")
        num_layers, num_features = saved["b_enc"].shape
        b_dec_LD = saved["b_dec"].new_zeros(num_layers, saved["b_dec"].shape[1])
        targets = [target for source in range(num_layers) for target in range(source, num_layers)]
        b_dec_LD.index_add_(0, torch.tensor(targets), saved["b_dec"])
        assert saved["W_dec"].shape[:2] == (len(targets), num_features)
        return cls(
            saved["W_enc"].transpose(1, 2).contiguous(),
            saved["b_enc"],
            saved["log_threshold"].exp(),
            saved["W_dec"],
            b_dec_LD,
            Selection.THRESHOLD,
        )


@dataclass(frozen=True)
class Quality:
    """What held-out tokens say of a transcoder."""

    tokens: int
    explained_variance: float
    """Mean over layers."""
    total_explained_variance: float
    explained_variance_by_layer: list[float]
    l0: float
    """Active features a token and layer."""
    l0_by_layer: list[float]
    silent_share: float
    """Of features, those that no token here makes active."""


def evaluate(weights: Weights, batches: Iterable[tuple[Tensor, Tensor]], dtype: torch.dtype = torch.float32) -> Quality:
    """
    Measure a transcoder.

    Args:
        batches: Inputs and targets [T, L, D], in the units of training.
        dtype: Of the products; sums are float64.
    """
    weights = weights.to(dtype)
    layers, double = range(weights.num_layers), torch.float64
    error_L, squares_L = torch.zeros(2, weights.num_layers, dtype=double)
    sum_LD = torch.zeros_like(weights.b_dec_LD, dtype=double)
    active_LF = torch.zeros_like(weights.b_enc_LF, dtype=double)
    tokens = 0
    for inputs_TLD, targets_TLD in batches:
        tokens += inputs_TLD.shape[0]
        acts_TLF = weights.activations(inputs_TLD.to(dtype))
        active_LF += (acts_TLF > 0).sum(0)
        for layer in layers:
            target_TD = targets_TLD[:, layer].to(double)
            error_L[layer] += (weights.predict(acts_TLF, layer).to(double) - target_TD).square().sum()
            squares_L[layer] += target_TD.square().sum()
            sum_LD[layer] += target_TD.sum(0)
    deviation_L = squares_L - sum_LD.square().sum(1) / tokens
    explained_L = 1 - error_L / deviation_L
    l0_L = active_LF.sum(1) / tokens
    return Quality(
        tokens=tokens,
        explained_variance=float(explained_L.mean()),
        total_explained_variance=float(1 - error_L.sum() / deviation_L.sum()),
        explained_variance_by_layer=explained_L.tolist(),
        l0=float(l0_L.mean()),
        l0_by_layer=l0_L.tolist(),
        silent_share=float((active_LF == 0).double().mean()),
    )
