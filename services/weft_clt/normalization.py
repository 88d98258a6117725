"""
Units of training: every layer's inputs and outputs are scaled so that their mean norm is sqrt(d).

Source: Ameisen et al. 2025, methods. Deviations: the scales are fixed beforehand from the dataset's statistics instead
of estimated on the way. Scales that are shared make the mean of the mean norms sqrt(d), not each of them.
Shapes: L layers, D d_model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weft_clt.config import Scales
from weft_common.errors import FailedPreconditionError

__all__ = ["Moments", "Normalization"]


@dataclass(frozen=True)
class Moments:
    """What has to be known of one stream at one layer, in the model's own units."""

    mean_norm: float
    mean_D: NDArray[np.float64]


@dataclass(frozen=True)
class Normalization:
    """Scales and, in scaled units, means; float64."""

    input_scale_L: NDArray[np.float64]
    output_scale_L: NDArray[np.float64]
    input_mean_LD: NDArray[np.float64]
    output_mean_LD: NDArray[np.float64]

    @classmethod
    def from_moments(
        cls, inputs: Sequence[Moments], outputs: Sequence[Moments], scales: Scales = Scales.SEPARATE
    ) -> Normalization:
        """
        Derive the scales of every layer.

        Raises:
            FailedPreconditionError: A stream is zero everywhere, so that nothing can be learnt from it.
        """
        norms: list[NDArray[np.float64]] = []
        means: list[NDArray[np.float64]] = []
        for stream, moments in (("input", inputs), ("output", outputs)):
            for layer, moment in enumerate(moments):
                if not (math.isfinite(moment.mean_norm) and moment.mean_norm > 0):
                    raise FailedPreconditionError(
                        f"The {stream} of layer {layer} has a mean norm of {moment.mean_norm}; "
                        "training needs activations that are finite and not all zero. Harvest the dataset again."
                    )
            norms.append(np.array([moment.mean_norm for moment in moments]))
            means.append(np.stack([moment.mean_D for moment in moments]))
        norm_2L, mean_2LD = np.stack(norms), np.stack(means)
        if scales is Scales.TIED:
            norm_2L = np.broadcast_to(norm_2L.mean(0), norm_2L.shape)
        elif scales is Scales.ACROSS_LAYERS:
            norm_2L = np.broadcast_to(norm_2L.mean(1, keepdims=True), norm_2L.shape)
        scale_2L = math.sqrt(mean_2LD.shape[2]) / norm_2L
        mean_2LD = mean_2LD * scale_2L[:, :, None]
        return cls(scale_2L[0], scale_2L[1], mean_2LD[0], mean_2LD[1])
