"""
Linear skips of a transcoder: maps from what an MLP reads to what it writes, which stay differentiable in a graph.

Source: circuit-tracer 0.5.0, `_configure_skip_connection`: gradients go through them at every position, the first too.

Legend: P positions, D d_model, L layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weft_attribution.core.transcoder import TranscoderReader
from weft_attribution.core.weights import LinearWeights

__all__ = ["Skip", "read_skips"]


@dataclass(frozen=True)
class Skip:
    """
    One layer's.

    Args:
        matrix_DD: [outputs, inputs], with the norm before the MLP folded in where the transcoder reads after it.
        offset_D: What it writes whatever the stream is.
        reads_norm: What it reads is the stream divided by the norm's scale.
    """

    matrix_DD: Tensor
    offset_D: Tensor
    reads_norm: bool


def read_skips(weights: LinearWeights, transcoder: TranscoderReader) -> Sequence[Skip | None]:
    """Read every layer's skip, None where it has none."""
    reads_norm = transcoder.manifest.input_hook == "mlp_in"
    found: list[Skip | None] = []
    for layer, layer_weights in enumerate(weights.layers):
        given = transcoder.skip(layer)
        if given is None:
            found.append(None)
            continue
        matrix_DD, norm = torch.tensor(given, dtype=weights.dtype), layer_weights.mlp_norm
        folded_DD = norm.fold(matrix_DD) if reads_norm else matrix_DD
        offset_D = norm.offset(matrix_DD) if reads_norm else torch.zeros(len(matrix_DD), dtype=weights.dtype)
        found.append(Skip(folded_DD.contiguous(), offset_D, reads_norm))
    return found
