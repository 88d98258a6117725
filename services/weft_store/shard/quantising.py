"""
Loops that measure and quantise, compiled when they are first used and without Python's lock while they run.

Sums are kept by channel, or by token, in float64: so they are vectors to the processor, and their order is fixed.
Shapes: T tokens, D d_model.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from weft_store.shard.compiling import compiled

__all__ = ["count_codes", "deviations", "quantise_rows", "sizes", "sums"]


@compiled()
def sums(values: Any, total_D: Any) -> None:
    """Add float32 [T, D] to float64 [D] over tokens."""
    for t in range(values.shape[0]):
        for d in range(values.shape[1]):
            total_D[d] += np.float64(values[t, d])


@compiled()
def deviations(values: Any, mean_D: Any, squared_D: Any) -> None:
    """Add the squared deviations of float32 [T, D] from the mean to float64 [D]."""
    for t in range(values.shape[0]):
        for d in range(values.shape[1]):
            difference = np.float64(values[t, d]) - mean_D[d]
            squared_D[d] += difference * difference


# Only the order of sums may change here; nothing in it is read back bit for bit.
@compiled(fastmath={"reassoc", "contract"})
def sizes(values: Any, mean_D: Any, squared_T: Any, deviation_T: Any) -> None:
    """Give the squared norm of each token of float32 [T, D], and that of its deviation from the mean, float64."""
    for t in range(values.shape[0]):
        squared, deviation = 0.0, 0.0
        for d in range(values.shape[1]):
            value = np.float64(values[t, d])
            squared += value * value
            deviation += (value - mean_D[d]) * (value - mean_D[d])
        squared_T[t], deviation_T[t] = squared, deviation


@compiled()
def quantise_rows(values: Any, mean_D: Any, step: Any, codes: Any, error_D: Any, peak_D: Any) -> None:
    """
    Quantise, and measure the error of exactly what a reader decodes.

    Args:
        values: float32 [T, D].
        mean_D, step: float32.
        codes: int32 [T, D], filled.
        error_D: float64, the squared errors are added to it.
        peak_D: float32, raised to the largest code before it is rounded to an integer; from 2**31 on codes are wrong.
    """
    for t in range(values.shape[0]):
        for d in range(values.shape[1]):
            scaled = np.rint(np.float32(np.float32(values[t, d] - mean_D[d]) / step))
            size = abs(scaled)
            peak_D[d] = size if size > peak_D[d] else peak_D[d]
            codes[t, d] = np.int32(scaled)
            decoded = np.float32(np.float32(scaled * step) + mean_D[d])
            difference = np.float64(decoded) - np.float64(values[t, d])
            error_D[d] += difference * difference


@compiled()
def count_codes(codes: Any, counts: Any) -> int:
    """Count int32 codes, zigzag, into int64 [N]; gives how many there are beyond it."""
    beyond = 0
    for t in range(codes.shape[0]):
        for d in range(codes.shape[1]):
            code = np.int64(codes[t, d])
            zigzag = 2 * code if code >= 0 else -2 * code - 1
            if zigzag < counts.size:
                counts[zigzag] += 1
            else:
                beyond += 1
    return beyond
