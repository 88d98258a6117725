"""
What a step and an evaluation measure, over all ranks.

Explained variance of a layer is 1 - (squared error) / (squared deviation from the mean of the same tokens).
A feature's density is the share of tokens it fires on. In training, features are dead by a clock in tokens, not steps;
in an evaluation a feature is silent where it fired on none of its tokens, and dense above a density of 0.1.
Shapes: T tokens of the group, L layers, C columns and S features of this rank, F features of a layer over all ranks,
B bins of the density histogram.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from weft_clt.exchange import Exchanged
from weft_clt.mesh import Mesh
from weft_clt.parameters import Share

__all__ = ["DENSE_ABOVE", "DENSITY_EDGES_LOG10", "DeadClock", "Evaluation", "ReconstructionSums", "StepMetrics"]

DENSE_ABOVE = 0.1
"""Features that fire on a larger share of the tokens are dense."""
DENSITY_EDGES_LOG10 = tuple(-6 + quarter / 4 for quarter in range(25))
"""Edges of the B = 24 bins of the density histogram, from 1e-6 to 1: four a decade."""


@dataclass(frozen=True)
class StepMetrics:
    """Measurements of one step; the fields of weft.training.v1.Metrics."""

    step: int
    tokens: int
    loss: float
    reconstruction_loss: float
    sparsity_loss: float
    preact_loss: float
    l0: float
    explained_variance: float
    dead_share: float
    gradient_norm: float
    learning_rate: float
    tokens_per_s: float
    data_wait_share: float
    sent_bytes_per_token: float
    aux_loss: float = 0.0
    entry_bytes_per_token: float = 0.0


@dataclass(frozen=True)
class Evaluation:
    """Measurements on held-out data; the fields of weft.training.v1.Evaluation."""

    step: int
    tokens: int
    explained_variance: float
    explained_variance_by_layer: list[float]
    l0_by_layer: list[float]
    silent_share: float
    reconstruction_loss: float
    silent_share_by_layer: list[float]
    dense_share: float
    dense_share_by_layer: list[float]
    density_edges_log10: list[float]
    density_counts_by_layer: list[int]
    """Row-major [L, B]; features that never fired are in no bin."""


def _squares(values_TC: Tensor) -> Tensor:
    """Sum the squares: within a row as torch does best, rows in float64."""
    norm_T: Tensor = torch.linalg.vector_norm(values_TC, dim=1)
    return norm_T.double().square().sum()


@dataclass
class ReconstructionSums:
    """
    Sums from which explained variance and L0 follow, over any number of passes.

    Deviations are taken from a fixed centre first, so that float32 inputs lose nothing to a large mean.
    Sums lie where the centre does; reduced ones on the host, but for the counts of features.
    """

    share: Share
    centre_LC: Tensor
    tokens: float = 0.0
    error_L: Tensor = field(init=False)
    deviation_L: Tensor = field(init=False)
    shift_LC: Tensor = field(init=False)
    active_L: Tensor = field(init=False)
    counts_LF: Tensor = field(init=False)
    """Tokens that a feature fired on, int64."""

    def __post_init__(self) -> None:
        shape, device = self.share.shape, self.centre_LC.device
        self.error_L = torch.zeros(shape.num_layers, dtype=torch.float64, device=device)
        self.deviation_L = torch.zeros(shape.num_layers, dtype=torch.float64, device=device)
        self.shift_LC = torch.zeros(shape.num_layers, self.share.num_columns, dtype=torch.float64, device=device)
        self.active_L = torch.zeros(shape.num_layers, dtype=torch.float64, device=device)
        self.counts_LF = torch.zeros(shape.num_layers, shape.num_features, dtype=torch.int64, device=device)

    def add(self, error_LTC: Tensor, targets_LTC: Tensor, exchanged: Exchanged, valid_T: Tensor | None = None) -> None:
        """Add one pass; `valid_T` is False for rows that only fill it up."""
        for layer, active in enumerate(exchanged.layers):
            error_TC = error_LTC[layer]
            moved_TC = targets_LTC[layer] - self.centre_LC[layer].to(error_TC.dtype)
            counts_T = active.row_active_T - active.row_start_T1[:-1]
            if valid_T is not None:
                error_TC, moved_TC, counts_T = error_TC[valid_T], moved_TC[valid_T], counts_T[valid_T]
            self.error_L[layer] += _squares(error_TC)
            self.deviation_L[layer] += _squares(moved_TC)
            self.shift_LC[layer] += moved_TC.sum(0, dtype=torch.float64)
            self.active_L[layer] += counts_T.sum()
            fired_N = active.value_N > 0
            if valid_T is not None:
                fired_N &= torch.repeat_interleave(valid_T, active.row_start_T1.diff().long())
            num_features = self.share.shape.num_features
            self.counts_LF[layer] += torch.bincount(active.feature_N[fired_N], minlength=num_features)
        self.tokens += float(error_LTC.shape[1] if valid_T is None else valid_T.sum())

    def reduced(self, mesh: Mesh) -> ReconstructionSums:
        """
        Return the sums over all ranks, in which columns are summed up too.

        Collectives: three reductions on the data axis, one on the feature axis.
        """
        num_layers = self.share.shape.num_layers
        by_token = torch.cat([self.active_L, self.active_L.new_full((1,), self.tokens)])
        mesh.data.sum_(by_token)
        mesh.data.sum_(self.shift_LC)
        by_column = torch.stack([self.error_L, self.deviation_L])
        mesh.data.sum_(by_column)
        by_token = mesh.read(by_token)
        tokens = float(by_token[num_layers])
        deviation_L = by_column[1] - self.shift_LC.square().sum(1) / max(tokens, 1.0)
        total = mesh.read(mesh.feature.sum_(torch.stack([by_column[0], deviation_L])))
        out = ReconstructionSums(self.share, self.centre_LC, tokens=tokens)
        out.error_L, out.deviation_L, out.active_L = total[0], total[1], by_token[:num_layers]
        out.counts_LF = mesh.data.sum_(self.counts_LF)
        return out

    @property
    def fired_LF(self) -> Tensor:  # noqa: N802 - a tensor's name
        """Whether a feature fired on any token."""
        return self.counts_LF > 0

    def explained_variance_by_layer(self) -> Tensor:
        """Return the explained variance, layer by layer, of reduced sums; 0 where nothing varies."""
        ratio_L = self.error_L / self.deviation_L
        return torch.where(self.deviation_L > 0, 1 - ratio_L, torch.zeros_like(ratio_L))

    def reconstruction_loss(self) -> float:
        """Return the mean over tokens of the squared error, summed over layers, of reduced sums."""
        return float(self.error_L.sum()) / max(self.tokens, 1.0)

    def evaluation(self, step: int) -> Evaluation:
        """Sum up reduced sums."""
        explained_L = self.explained_variance_by_layer()
        counts_LF = self.counts_LF.cpu()
        density_LF = counts_LF.double() / max(self.tokens, 1.0)
        silent_L, dense_L = (counts_LF == 0).double().mean(1), (density_LF > DENSE_ABOVE).double().mean(1)
        return Evaluation(
            step=step,
            tokens=int(self.tokens),
            explained_variance=float(explained_L.mean()),
            explained_variance_by_layer=explained_L.tolist(),
            l0_by_layer=(self.active_L / max(self.tokens, 1.0)).tolist(),
            silent_share=float(silent_L.mean()),
            reconstruction_loss=self.reconstruction_loss(),
            silent_share_by_layer=silent_L.tolist(),
            dense_share=float(dense_L.mean()),
            dense_share_by_layer=dense_L.tolist(),
            density_edges_log10=list(DENSITY_EDGES_LOG10),
            density_counts_by_layer=_histogram(density_LF).flatten().tolist(),
        )


def _histogram(density_LF: Tensor) -> Tensor:
    """Count the features of each layer in the B bins, [L, B]; a density at an edge lies in the bin above it."""
    edges_E = torch.tensor(DENSITY_EDGES_LOG10, dtype=torch.float64)
    num_bins = len(DENSITY_EDGES_LOG10) - 1
    counts_LB = torch.zeros(density_LF.shape[0], num_bins, dtype=torch.int64)
    for layer, density_F in enumerate(density_LF):
        # Edges are powers of ten in floating point: a hair above, so that a density of exactly 0.1 is found at -1.
        place_F = torch.log10(density_F[density_F > 0]) + 1e-12
        bins_F = torch.searchsorted(edges_E, place_F, right=True).sub_(1).clamp_(0, num_bins - 1)
        counts_LB[layer] = torch.bincount(bins_F, minlength=num_bins)
    return counts_LB


class DeadClock:
    """Tokens since each feature last fired."""

    def __init__(self, share: Share, dead_after_tokens: int, device: torch.device | None = None) -> None:
        self._limit = dead_after_tokens
        dims = share.shape.num_layers, share.shape.num_features
        self.silent_tokens_LF = torch.zeros(dims, dtype=torch.int64, device=device)

    def advance(self, fired_LF: Tensor, step_tokens: int) -> float:
        """Let the tokens of a step pass, and return the share of dead features."""
        self.silent_tokens_LF += step_tokens
        self.silent_tokens_LF[fired_LF > 0] = 0
        return float((self.silent_tokens_LF >= self._limit).double().mean())
