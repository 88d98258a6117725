"""
A trained transcoder that reads one layer after the other, for forward passes in which a layer's input depends on what
was written below it.

In the model's own units: what it reads is scaled first, what it writes is scaled back.
Shapes: N tokens, L layers, F features, D d_model.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weft_clt.active import ActiveLayer, active_from_dense
from weft_clt.config import Activation, FeatureConfig
from weft_clt.normalization import Normalization
from weft_clt.parameters import Parameters
from weft_common.errors import FailedPreconditionError, ShapeError

__all__ = ["LayerwiseTranscoder"]

Floats = NDArray[np.float32]


class LayerwiseTranscoder:
    """
    Reads inputs from layer 0 up, and writes reconstructions of the layers it has read.

    Args:
        params: Of one rank, that is whole; thresholds, at least 0, make it JumpReLU.
        features: How a layer's features are selected without thresholds: TopK or ReLU.

    Raises:
        ShapeError: The parameters are one of several ranks' shares.
        FailedPreconditionError: Features are selected by more than their own layer, so that nothing is known of a layer
            before all are read.
    """

    def __init__(self, params: Parameters, features: FeatureConfig, normalization: Normalization) -> None:
        if params.share.size != 1:
            raise ShapeError("A transcoder that reads layer by layer needs the parameters of all ranks joined.")
        if params.threshold_LS is None and features.activation not in (Activation.TOP_K, Activation.RELU):
            raise FailedPreconditionError(
                f"{features.activation} does not select layer by layer, so that nothing can be written before all "
                "layers are read; give it thresholds first (`weft_clt.conversion`)."
            )
        self._params, self._features, self._normalization = params, features, normalization
        self._scaled_L: list[Tensor] = []
        self._active_L: list[ActiveLayer] = []

    @property
    def num_layers(self) -> int:
        """L."""
        return self._params.share.shape.num_layers

    def clear(self) -> None:
        """Forget what was read; the next layer is 0."""
        self._scaled_L, self._active_L = [], []

    def read(self, layer: int, inputs_ND: Floats) -> None:
        """Read the next layer's input, in the model's units."""
        if layer != len(self._active_L):
            raise ShapeError(f"Layer {layer} was given where layer {len(self._active_L)} comes next.")
        params = self._params
        scale = np.float32(self._normalization.input_scale_L[layer])
        scaled_ND = torch.from_numpy(inputs_ND * scale).to(params.dtype)
        preact_NF = torch.addmm(params.b_enc_LS[layer], scaled_ND, params.encoder(layer).T)
        self._scaled_L.append(scaled_ND)
        self._active_L.append(active_from_dense(self._selected(layer, preact_NF)))

    def _selected(self, layer: int, preact_NF: Tensor) -> Tensor:
        if self._params.threshold_LS is not None:
            return preact_NF * (preact_NF > self._params.threshold_LS[layer])
        if self._features.activation is Activation.RELU:
            return preact_NF.clamp(min=0)
        kept = torch.topk(preact_NF, min(self._features.top_k, preact_NF.shape[1]), dim=1)
        return torch.zeros_like(preact_NF).scatter_(1, kept.indices, kept.values.clamp(min=0))

    def _rows(self, source: int, target: int) -> tuple[Tensor, Tensor]:
        """Return decoder rows in the type that is computed in, and where among them each entry's is."""
        block_FD, feature_N = self._params.decoder(source, target), self._active_L[source].feature_N
        if block_FD.dtype is self._params.dtype:
            return block_FD, feature_N
        used_F, place_N = torch.unique(feature_N, return_inverse=True)
        return block_FD[used_F.long()].to(self._params.dtype), place_N.to(feature_N.dtype)

    def reconstruct(self, layer: int) -> Floats:
        """Return what the layers read so far, from 0 to `layer`, write to a layer: [N, D], in the model's units."""
        params = self._params
        if layer >= len(self._active_L):
            raise ShapeError(f"Layer {layer} cannot be written before it is read.")
        out_ND = params.b_dec_LC[layer].expand(self._active_L[layer].num_tokens, -1).contiguous()
        if params.w_skip_LCD is not None:
            out_ND.addmm_(self._scaled_L[layer], params.w_skip_LCD[layer].T)
        for source in params.share.shape.sources(layer):
            active = self._active_L[source]
            rows_FD, place_N = self._rows(source, layer)
            out_ND += torch.nn.functional.embedding_bag(
                place_N,
                rows_FD,
                active.row_start_T1,
                mode="sum",
                per_sample_weights=active.value_N,
                include_last_offset=True,
            )
        out_ND /= float(self._normalization.output_scale_L[layer])
        return np.asarray(out_ND.float().numpy())
