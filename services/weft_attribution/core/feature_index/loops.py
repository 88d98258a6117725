"""
The compiled loops of an index: all that one pass over the activations of some features tells of them.

Arrays would go over every active token a dozen times; these go over each once.
"""

from typing import Any

import numpy as np

from weft_clt.kernels.compiling import compiled

__all__ = ["fold", "insert_best"]

_HALF_MANTISSA = int(np.float32(np.sqrt(0.5)).view(np.int32)) & 0x7FFFFF
"""Of the float that parts an octave in two."""
_MANTISSA = 0x7FFFFF
_EXPONENT_ZERO = 127


@compiled()
def fold(
    acts_FP: Any,
    bits_FP: Any,
    threshold_F: Any,
    kept_P: Any,
    tile_P: Any,
    zero_bin: int,
    count_F: Any,
    total_F: Any,
    largest_F: Any,
    histogram_FB: Any,
    feature_C: Any,
    position_C: Any,
    peak_C: Any,
) -> int:
    """
    Count what is active, and find the strongest token of every stretch of text for each feature.

    Args:
        acts_FP: Pre-activations, float32; where nothing is active they are set to zero.
        bits_FP: The same memory as int32.
        threshold_F: Activation is the pre-activation where that is above this, and zero elsewhere.
        kept_P: Whether a position counts.
        tile_P: Number of the stretch that it is in; does not fall.
        zero_bin: Bin of the histogram that begins at 1; bins are half octaves, the outer ones take what lies beyond.
        count_F: Grows by the active tokens, int64.
        total_F: Grows by the sum of their activations, float64.
        largest_F: Rises to the largest of them.
        histogram_FB: Grows by how many fall into each bin.
        feature_C: Receives the features of the strongest tokens, rising; room for every feature in every stretch.
        position_C: Receives their positions, rising within a feature; of equals the first.
        peak_C: Receives their activations.

    Returns:
        How many there are.
    """
    num_bins = histogram_FB.shape[1]
    found = -1
    for feature in range(acts_FP.shape[0]):
        threshold, tile, count, total, largest = threshold_F[feature], -1, 0, 0.0, largest_F[feature]
        for position in range(acts_FP.shape[1]):
            value = acts_FP[feature, position]
            if not (kept_P[position] and value > threshold):
                acts_FP[feature, position] = 0
                continue
            count += 1
            total += value
            place = 0
            if value > 0:
                bits = bits_FP[feature, position]
                place = zero_bin + 2 * ((bits >> 23) - _EXPONENT_ZERO)
                place = min(max(place + ((bits & _MANTISSA) >= _HALF_MANTISSA), 0), num_bins - 1)
            histogram_FB[feature, place] += 1
            if tile_P[position] != tile:
                tile = tile_P[position]
                found += 1
                feature_C[found], position_C[found], peak_C[found] = feature, position, value
            elif value > peak_C[found]:
                position_C[found], peak_C[found] = position, value
            largest = max(largest, value)
        count_F[feature] += count
        total_F[feature] += total
        largest_F[feature] = largest
    return found + 1


@compiled()
def insert_best(feature_C: Any, key_C: Any, first: int, key_FK: Any, place_FK: Any, taken_FK: Any) -> None:
    """
    Put candidates among the best of their features, in the order in which they come.

    Args:
        feature_C: Whose each is.
        key_C: How good each is, the smaller the better; of equal ones the first stays before.
        first: Feature of the first row of `taken_FK`.
        key_FK: Keys of the best, rising.
        place_FK: Which place each of them has; who is in takes the place of who falls out.
        taken_FK: Receives which candidate took a place last; left alone where none did.
    """
    last = key_FK.shape[1] - 1
    for candidate in range(len(feature_C)):
        feature, key = feature_C[candidate], key_C[candidate]
        if not key < key_FK[feature, last]:
            continue
        place, rank = place_FK[feature, last], last
        while rank > 0 and key < key_FK[feature, rank - 1]:
            key_FK[feature, rank], place_FK[feature, rank] = key_FK[feature, rank - 1], place_FK[feature, rank - 1]
            rank -= 1
        key_FK[feature, rank], place_FK[feature, rank] = key, place
        taken_FK[feature - first, place] = candidate
