"""
What the captured streams of one pass say of features and of logits.

Legend: P positions, F features of a layer, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from weft_attribution.core.firing import Firing
from weft_attribution.core.open_graphs import OpenGraph
from weft_attribution.core.ports import Capture
from weft_attribution.core.transcoder import TranscoderReader
from weft_attribution.core.weights import LinearWeights

__all__ = ["FINAL", "demeaned_logits", "encode_at"]

Array = npt.NDArray[Any]
FINAL = "ln_final.normed"
"""The stream that logits are read from."""


def encode_at(
    transcoder: TranscoderReader, keys: Sequence[tuple[int, int, int]], capture: Capture
) -> list[tuple[float, float]]:
    """Pre-activation and activation of features, each (layer, index, position)."""
    places = np.array(sorted({position for _, _, position in keys}), dtype=np.int64)
    row_of = {int(position): row for row, position in enumerate(places)}
    # Rows of what is asked decide by themselves; where features compete, all of them are needed, at half the size.
    compete = transcoder.manifest.top_k > 0
    dtype = torch.float32 if compete else torch.float64
    firing = Firing(transcoder, capture.tensors, capture.model.num_layers, dtype, places)
    found: dict[tuple[int, int, int], tuple[float, float]] = {}
    for layer in sorted({key[0] for key in keys}):
        here = [key for key in keys if key[0] == layer]
        encoder = transcoder.encoder(layer)
        indices = np.arange(len(encoder.b_enc_F)) if compete else np.array(sorted({index for _, index, _ in here}))
        encoder = encoder if compete else encoder.only(indices)
        pre_PF = firing.preactivations(layer, encoder)
        fires_PF = firing.fires(encoder, pre_PF)
        for key in here:
            place = row_of[key[2]], int(np.searchsorted(indices, key[1]))
            value = float(pre_PF[place])
            found[key] = value, value if fires_PF[place] else 0.0
    return [found[key] for key in keys]


def demeaned_logits(opened: OpenGraph, weights: LinearWeights, capture: Capture) -> tuple[Array, Array]:
    """The explained tokens' logits before any cap, less their mean, and their probabilities."""
    logits_V = weights.logits(torch.tensor(capture.tensors[FINAL][-1], dtype=weights.dtype)).double()
    capped_V = weights.logit_cap * (logits_V / weights.logit_cap).tanh() if weights.logit_cap else logits_V
    ids = [token.id for token in opened.graph.nodes.logits]
    return (logits_V - logits_V.mean())[ids].numpy(), capped_V.softmax(0)[ids].numpy()
