"""
A checkpoint as a transcoder in the model's own units, to be written in any layout (`weft_clt.formats`).

The normalisation is folded in: W_enc *= s_in[i]; W_dec to k /= s_out[k]; b_dec /= s_out; b_enc and thresholds stay.
TopK becomes JumpReLU by a threshold a feature, set such that on calibration tokens a feature fires exactly as often as
TopK selected it; so L0 is kept layer by layer and feature by feature.
Shapes: L layers, F features, D d_model, N calibration tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from weft_clt.formats.representation import Array, Encoder, TranscoderFacts
from weft_clt.normalization import Normalization
from weft_clt.parameters import Parameters
from weft_common.errors import ShapeError

__all__ = ["TrainedTranscoder", "thresholds_from_top_k"]


def thresholds_from_top_k(preact_NF: Tensor, top_k: int) -> Tensor:
    """
    Return the threshold of every feature of a layer, at least 0.

    It lies half-way between the smallest pre-activation that still counts and the next below. A feature that TopK never
    selected gets its largest pre-activation, so that it stays silent on these tokens.

    >>> thresholds_from_top_k(torch.tensor([[3.0, 1.0], [2.0, 4.0]]), 1).tolist()
    [2.5, 2.5]
    """
    kept_NK = torch.topk(preact_NF, min(top_k, preact_NF.shape[1]), dim=1)
    selected_NF = torch.zeros_like(preact_NF, dtype=torch.bool).scatter_(1, kept_NK.indices, kept_NK.values > 0)
    count_F = selected_NF.sum(0)
    ordered_NF = torch.sort(preact_NF, dim=0, descending=True).values
    last = preact_NF.shape[0] - 1
    counted_F = ordered_NF.gather(0, (count_F - 1).clamp(min=0)[None])[0]
    next_F = ordered_NF.gather(0, count_F.clamp(max=last)[None])[0]
    next_F = torch.where(count_F > last, torch.zeros_like(next_F), next_F)
    threshold_F = torch.where(count_F > 0, (counted_F + next_F) / 2, ordered_NF[0])
    return threshold_F.clamp(min=0)


class TrainedTranscoder:
    """
    The parameters of a checkpoint, as `weft_clt.formats.representation.TranscoderSource`; weights are scaled when read.

    Args:
        params: Of one rank, that is whole, with thresholds.
        normalization: In whose units it was trained.
        input_hook: What it reads.
        output_hook: What it predicts.

    Raises:
        ShapeError: Ranks or thresholds are missing.
    """

    def __init__(
        self, params: Parameters, normalization: Normalization, input_hook: str = "mlp_in", output_hook: str = "mlp_out"
    ) -> None:
        if params.share.size != 1 or params.threshold_LS is None:
            raise ShapeError("An export needs the parameters of all ranks joined, and thresholds.")
        shape = params.share.shape
        self._params, self._threshold_LF, self._normalization = params, params.threshold_LS, normalization
        self._facts = TranscoderFacts(
            num_layers=shape.num_layers,
            num_features=shape.num_features,
            d_model=shape.d_model,
            input_hook=input_hook,
            output_hook=output_hook,
            has_thresholds=True,
            window=shape.num_layers,
        )

    @property
    def facts(self) -> TranscoderFacts:
        """What it is."""
        return self._facts

    def encoder(self, layer: int) -> Encoder:
        """Scale one layer's encoder."""
        return Encoder(
            w_enc_FD=self._params.w_enc_LSD[layer].float().numpy() * self._normalization.input_scale_L[layer],
            b_enc_F=self._params.b_enc_LS[layer].float().numpy(),
            threshold_F=self._threshold_LF[layer].float().numpy(),
        )

    def decoder(self, layer: int, target: int, features: slice) -> Array:
        """Scale what some features write to one layer."""
        rows_fD = self._params.decoder(layer, target)[features].float().numpy()
        scaled_fD: Array = rows_fD / self._normalization.output_scale_L[target]
        return scaled_fD

    def output_bias(self, target: int) -> Array:
        """Scale a layer's output bias."""
        bias_D: Array = self._params.b_dec_LC[target].float().numpy() / self._normalization.output_scale_L[target]
        return bias_D
