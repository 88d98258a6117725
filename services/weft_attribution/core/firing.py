"""
Which features fire: those above their thresholds or, where a transcoder was trained to count, the largest.

    threshold     h > threshold, 0 where there is none: ReLU, JumpReLU, and BatchTopK by its running threshold
    top_k         the largest k of a layer that are above 0, of equal ones the first
    joint_top_k   the largest k times L of all layers together that are above 0, by h times the norm that a feature's
                  decoders had in training, with all that equal the smallest

Source: Gao et al. 2024 (TopK), and how `weft_clt` trains joint TopK. Deviations: none.
Legend: P positions, F features of a layer, L layers, J kept over all layers.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from weft_attribution.core.transcoder import EncoderLayer, TranscoderReader

__all__ = ["Firing", "layers_read"]

Array = npt.NDArray[Any]


def layers_read(transcoder: TranscoderReader, layers: set[int], num_layers: int) -> list[int]:
    """Layers whose streams say what fires in some layers: all of them where features compete over layers."""
    return list(range(num_layers)) if transcoder.manifest.over_layers else sorted(layers)


class Firing:
    """
    What fires on some positions of a prompt.

    Args:
        transcoder: The transcoder.
        tensors: Captured streams, of all layers where features compete over layers.
        num_layers: L.
        dtype: To compute in.
        positions: Where, P of them; all without it.
    """

    def __init__(
        self,
        transcoder: TranscoderReader,
        tensors: Mapping[str, Array],
        num_layers: int,
        dtype: torch.dtype,
        positions: Array | None = None,
    ) -> None:
        self._hook, self._tensors, self._dtype = transcoder.manifest.input_hook, tensors, dtype
        self._positions = slice(None) if positions is None else positions
        self._top_k = transcoder.manifest.top_k
        self._bound_P1: Tensor | None = None
        if transcoder.manifest.over_layers:
            # The encoders are read once more: what all layers hold is too much to keep.
            most, best_PJ = self._top_k * num_layers, torch.zeros(1, 0, dtype=dtype)
            for layer in range(num_layers):
                encoder = transcoder.encoder(layer)
                score_PF = self._score(encoder, self.preactivations(layer, encoder))
                seen = torch.cat([best_PJ.expand(len(score_PF), -1), score_PF], 1)
                best_PJ = torch.topk(seen, min(most, seen.shape[1]), dim=1, sorted=False).values
            self._bound_P1 = best_PJ.amin(1, keepdim=True)

    def stream(self, layer: int) -> Tensor:
        """What a layer's encoder reads: [P, D]."""
        return torch.tensor(self._tensors[f"layers.{layer}.{self._hook}"][self._positions], dtype=self._dtype)

    def preactivations(self, layer: int, encoder: EncoderLayer) -> Tensor:
        """Pre-activations of a layer: [P, F]."""
        w_enc_FD, b_enc_F = (torch.tensor(each, dtype=self._dtype) for each in (encoder.w_enc_FD, encoder.b_enc_F))
        return torch.addmm(b_enc_F, self.stream(layer), w_enc_FD.T)

    def fires(self, encoder: EncoderLayer, pre_PF: Tensor) -> Tensor:
        """Tell which of a layer's pre-activations are activations: bool [P, F]."""
        if self._bound_P1 is not None:
            score_PF = self._score(encoder, pre_PF)
            return (score_PF >= self._bound_P1) & (score_PF > 0)
        if self._top_k:
            most = min(self._top_k, pre_PF.shape[1])
            bound_P1 = torch.topk(pre_PF, most, dim=1, sorted=False).values.amin(1, keepdim=True)
            above_PF, equal_PF = pre_PF > bound_P1, pre_PF == bound_P1
            room_P1 = most - above_PF.sum(1, keepdim=True)
            return (above_PF | (equal_PF & (equal_PF.cumsum(1) <= room_P1))) & (pre_PF > 0)
        if encoder.threshold_F is None:
            return pre_PF > 0
        return pre_PF > torch.tensor(np.asarray(encoder.threshold_F), dtype=pre_PF.dtype)

    def _score(self, encoder: EncoderLayer, pre_PF: Tensor) -> Tensor:
        return pre_PF * torch.tensor(encoder.rank_norm_F, dtype=pre_PF.dtype)
