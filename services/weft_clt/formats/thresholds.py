"""
Thresholds as layouts keep them.

    here               h * 1[h > threshold]
    SAELens, GemmaScope    relu(h) * 1[h > threshold]: the same with max(threshold, 0)
    CLT-Forge, llamascopium    h * 1[h > exp(log_threshold)], so above 0; 0 becomes the smallest normal float32
Shapes: F features.
"""

import numpy as np

from weft_clt.formats.representation import Array
from weft_clt.formats.safetensors_reading import check_finite
from weft_common.errors import FailedPreconditionError

__all__ = ["above_zero", "exponential", "logarithm"]

_SMALLEST = float(np.finfo(np.float32).tiny)


def exponential(log_threshold_F: Array, what: str) -> Array:
    """Return thresholds from their logarithms, float64. DataLossError where one is no finite number."""
    with np.errstate(over="ignore"):
        threshold_F: Array = np.exp(log_threshold_F.astype(np.float64))
    return check_finite(threshold_F, f"exp(log_threshold) of {what!r}")


def above_zero(threshold_F: Array | None, num_features: int, what: str) -> Array:
    """
    Return thresholds, zeros for ReLU.

    Raises:
        FailedPreconditionError: One is negative, so that its feature has negative activations.
    """
    if threshold_F is None:
        return np.zeros(num_features)
    if (threshold_F < 0).any():
        raise FailedPreconditionError(
            f"{int((threshold_F < 0).sum())} thresholds of {what} are negative, down to {threshold_F.min():.4g}: this "
            "layout has none below 0. Export it in circuit-tracer's layout."
        )
    return threshold_F


def logarithm(threshold_F: Array | None, num_features: int, what: str) -> Array:
    """Return logarithms of thresholds, float64. FailedPreconditionError where one is negative."""
    positive_F = np.maximum(above_zero(threshold_F, num_features, what).astype(np.float64), _SMALLEST)
    logarithm_F: Array = np.log(positive_F)
    return logarithm_F
