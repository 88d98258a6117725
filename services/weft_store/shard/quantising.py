"""
Loops that measure and quantise, compiled when they are first used and without Python's lock while they run.

Sums are kept by channel, or by token, in float64: so they are vectors to the processor, and their order is fixed.
Shapes: T tokens, D d_model.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from weft_store.shard.compiling import compiled

__all__ = ["count_codes", "deviations", "largest_bits", "quantise_rows", "sums"]

_LANES = 4
_COMMON = 256


@compiled()
def largest_bits(bits: Any) -> Any:
    """Give the largest of int32 [T, D] without their signs: of float32's bits, those of the largest size, or of NaN."""
    largest = np.int32(0)
    for t in range(bits.shape[0]):
        for d in range(bits.shape[1]):
            size = np.int32(bits[t, d] & np.int32(0x7FFFFFFF))
            largest = size if size > largest else largest
    return largest


@compiled()
def sums(values: Any, total_D: Any) -> None:
    """Add float32 [T, D] to float64 [D] over tokens."""
    for t in range(values.shape[0]):
        for d in range(values.shape[1]):
            total_D[d] += np.float64(values[t, d])


# Only the order of a token's sums may change here; nothing in them is read back bit for bit.
@compiled(fastmath={"reassoc"})
def deviations(values: Any, mean_D: Any, squared_D: Any, squared_T: Any, deviation_T: Any) -> None:
    """
    Measure float32 [T, D] about a mean, in float64.

    Args:
        values, mean_D: What is measured.
        squared_D: The squared deviations are added to it.
        squared_T, deviation_T: Filled with each token's squared norm, and with that of its deviation.
    """
    for t in range(values.shape[0]):
        squared, deviation = 0.0, 0.0
        for d in range(values.shape[1]):
            value = np.float64(values[t, d])
            difference = (value - mean_D[d]) * (value - mean_D[d])
            squared_D[d] += difference
            squared += value * value
            deviation += difference
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
    """Count int32 codes, zigzag, into int64 [N], N of at least 256; gives how many there are beyond it."""
    # A counter that was just raised is slow to raise again, and neighbours are often alike: they have one each.
    lanes = np.zeros((_LANES, _COMMON), np.int64)
    beyond = 0
    for t in range(codes.shape[0]):
        for d in range(codes.shape[1]):
            code = codes[t, d]
            zigzag = np.uint32((code << np.int32(1)) ^ (code >> np.int32(31)))
            if zigzag < _COMMON:
                lanes[d & (_LANES - 1), zigzag] += 1
            elif zigzag < counts.size:
                counts[zigzag] += 1
            else:
                beyond += 1
    for lane in range(_LANES):
        for code in range(_COMMON):
            counts[code] += lanes[lane, code]
    return beyond
