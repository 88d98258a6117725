"""
Units of training: every layer's inputs and outputs are scaled so that their mean norm is sqrt(d).

Source: Ameisen et al. 2025, methods. Deviations: one scale a layer for inputs and one for outputs, fixed beforehand
from the dataset's statistics instead of estimated on the way.
Shapes: L layers, D d_model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
    def from_moments(cls, inputs: Sequence[Moments], outputs: Sequence[Moments]) -> Normalization:
        """
        Derive the scales of every layer.

        Raises:
            FailedPreconditionError: A stream is zero everywhere, so that nothing can be learnt from it.
        """
        scales: list[NDArray[np.float64]] = []
        means: list[NDArray[np.float64]] = []
        for stream, moments in (("input", inputs), ("output", outputs)):
            for layer, moment in enumerate(moments):
                if not (math.isfinite(moment.mean_norm) and moment.mean_norm > 0):
                    raise FailedPreconditionError(
                        f"The {stream} of layer {layer} has a mean norm of {moment.mean_norm}; "
                        "training needs activations that are finite and not all zero. Harvest the dataset again."
                    )
            scale_L = np.array([math.sqrt(m.mean_D.size) / m.mean_norm for m in moments])
            scales.append(scale_L)
            means.append(np.stack([m.mean_D for m in moments]) * scale_L[:, None])
        return cls(scales[0], scales[1], means[0], means[1])
