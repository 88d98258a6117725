"""
The compiled loops of the CPU kernels, but for the sparse products (`panel_loops`).

Sums may be reordered and fused; not-a-numbers and infinities keep their meaning.
Shapes: see `weft_clt.kernels.port`.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from weft_clt.kernels.compiling import compiled
from weft_clt.kernels.panel_rows import GROUP, any_above

__all__ = [
    "adam_loop",
    "adam_without_first_loop",
    "encode_grad_loop",
    "feature_order",
    "merge_entries",
    "row_squares_loop",
    "select_above",
    "select_top",
    "sum_squares_loop",
    "to_slots",
]

_compiled = compiled(fastmath={"reassoc", "contract", "arcp", "nsz"})
_index = numba.uint64  # an index that cannot be negative lets the compiler use vector instructions
_exact = compiled()


@_compiled
def encode_grad_loop(counts: Any, feature: Any, grad_preact: Any, inputs: Any, grad_weight: Any) -> None:
    """grad_weight[feature[n]] += grad_preact[n] * inputs[t] for every entry n of token t."""
    entry = 0
    num_columns = _index(inputs.shape[1])
    for token in range(_index(inputs.shape[0])):
        for _ in range(counts[token]):
            f0, g0 = _index(feature[entry]), grad_preact[entry]
            entry += 1
            if g0 != 0:
                for column in range(num_columns):
                    grad_weight[f0, column] += g0 * inputs[token, column]


@_compiled
def row_squares_loop(weight: Any, out: Any) -> None:
    """out[f] += |weight[f]|^2."""
    for row in range(weight.shape[0]):
        total = out[row]
        for column in range(weight.shape[1]):
            total += weight[row, column] * weight[row, column]
        out[row] = total


@_compiled
def sum_squares_loop(values: Any) -> float:
    """Sum of squares in float64."""
    total = 0.0
    for index in range(values.shape[0]):
        wide = float(values[index])
        total += wide * wide
    return total


@_compiled
def adam_loop(
    param: Any, grad: Any, first: Any, second: Any, scale: Any, beta1: Any, beta2: Any, rest1: Any, rest2: Any,
    rate: Any, root: Any, epsilon: Any,
) -> None:  # fmt: skip
    """One pass of Adam; `rate` holds the first bias correction, `root` the inverse root of the second."""
    for index in range(param.shape[0]):
        g = grad[index] * scale
        m = beta1 * first[index] + rest1 * g
        v = beta2 * second[index] + rest2 * g * g
        first[index] = m
        second[index] = v
        param[index] -= rate * m / (np.sqrt(v) * root + epsilon)


@_compiled
def adam_without_first_loop(
    param: Any, grad: Any, second: Any, scale: Any, beta2: Any, rest2: Any, rate: Any, root: Any, epsilon: Any
) -> None:
    """One pass of Adam with beta1 = 0, whose first moment is the gradient."""
    for index in range(param.shape[0]):
        g = grad[index] * scale
        v = beta2 * second[index] + rest2 * g * g
        second[index] = v
        param[index] -= rate * g / (np.sqrt(v) * root + epsilon)


@_exact
def merge_entries(
    counts: Any, feature: Any, value: Any, starts: Any, top_k: int, row_start: Any, row_active: Any,
    out_feature: Any, out_value: Any, out_slot: Any,
) -> int:  # fmt: skip
    """
    Join R lists that lie one after the other from `starts[r]` on; returns the number of entries kept.

    The entries of a token come rank by rank, those above 0 before those at 0.
    """
    num_ranks, num_tokens = counts.shape
    place = starts.copy()
    widest = 1
    for token in range(num_tokens):
        width = 0
        for rank in range(num_ranks):
            width += counts[rank, token]
        widest = max(widest, width)
    scratch = np.empty(widest, value.dtype)
    kept = 0
    for token in range(num_tokens):
        width = 0
        for rank in range(num_ranks):
            for entry in range(place[rank], place[rank] + counts[rank, token]):
                scratch[width] = value[entry]
                width += 1
        bound = value.dtype.type(-1)
        ties = 0
        if 0 < top_k < width:
            ordered = np.sort(scratch[:width])
            bound = ordered[width - top_k]
            for index in range(width - top_k, width):
                if ordered[index] == bound:
                    ties += 1
        row_start[token] = kept
        for wanted in range(2):
            seen = 0
            for rank in range(num_ranks):
                for entry in range(place[rank], place[rank] + counts[rank, token]):
                    v = value[entry]
                    if v < bound:
                        continue
                    if v == bound:
                        seen += 1
                        if seen > ties:
                            continue
                    if (v > 0) == (wanted == 0):
                        out_feature[kept] = feature[entry]
                        out_value[kept] = v
                        out_slot[kept] = entry
                        kept += 1
            if wanted == 0:
                row_active[token] = kept
        for rank in range(num_ranks):
            place[rank] += counts[rank, token]
    row_start[num_tokens] = kept
    return kept


@_exact
def feature_order(
    first: int, row_start: Any, row_active: Any, feature: Any, value: Any, slot: Any, start: Any, near: Any,
    out_token: Any, out_value: Any, out_slot: Any, near_slots: bool,
) -> None:  # fmt: skip
    """Order the entries of a layer from `first` on: those above 0 by feature, then those at 0, tokens ascending."""
    num_tokens, num_features = row_active.shape[0], start.shape[0] - 1
    start[:] = 0
    near[:] = 0
    for token in range(num_tokens):
        for entry in range(row_start[token], row_start[token + 1]):
            (start if entry < row_active[token] else near)[feature[entry] + 1] += 1
    start[0] = first
    for index in range(num_features):
        start[index + 1] += start[index]
    near[0] = start[num_features]
    for index in range(num_features):
        near[index + 1] += near[index]
    places = start[:-1].copy()
    for token in range(num_tokens):
        for entry in range(row_start[token], row_active[token]):
            spot = places[feature[entry]]
            places[feature[entry]] = spot + 1
            out_token[spot], out_value[spot], out_slot[spot] = token, value[entry], slot[entry]
    places[:] = near[:-1]
    out_value[near[0] : near[num_features]] = 0
    out_slot[near[0] : near[num_features]] = 0
    for token in range(num_tokens):
        for entry in range(row_active[token], row_start[token + 1]):
            spot = places[feature[entry]]
            places[feature[entry]] = spot + 1
            out_token[spot] = token
            if near_slots:
                out_slot[spot] = slot[entry]


@_exact
def to_slots(slot: Any, value: Any, out: Any) -> None:
    """out[slot[n]] = value[n]."""
    for entry in range(slot.shape[0]):
        out[slot[entry]] = value[entry]


@_exact
def select_above(preact: Any, bound: Any, counts: Any, out_feature: Any, out_value: Any, place: int) -> int:
    """
    List the entries of each token that are above the bound of their feature.

    Returns the end of the list, which may lie beyond the room: then it is not complete, and more room is needed.
    """
    room = out_feature.shape[0]
    for token in range(preact.shape[0]):
        before = place
        for feature in range(preact.shape[1]):
            if preact[token, feature] > bound[feature]:
                if place < room:
                    out_feature[place] = feature
                    out_value[place] = preact[token, feature]
                place += 1
        counts[token] = place - before
    return place


@_exact
def _kth_largest(preact: Any, token: int, bound: Any, kept: Any) -> int:
    """Fill `kept` with the largest values above `bound`, descending; returns how many there are."""
    num_features, most = preact.shape[1], kept.shape[0]
    count = 0
    for first in range(0, num_features, GROUP):
        last = min(first + GROUP, num_features)
        if last - first == GROUP and not any_above(preact, token, first, bound):
            continue
        for feature in range(first, last):
            value = preact[token, feature]
            if not value > bound:
                continue
            spot = count if count < most else most - 1
            while spot > 0 and kept[spot - 1] < value:
                kept[spot] = kept[spot - 1]
                spot -= 1
            kept[spot] = value
            count = min(count + 1, most)
            if count == most:
                bound = kept[most - 1]
    return count


@_exact
def select_top(preact: Any, top_k: int, counts: Any, out_feature: Any, out_value: Any, place: int) -> int:
    """List each token's `top_k` largest entries above 0, the smaller feature first among equals; returns the end."""
    num_tokens, num_features = preact.shape
    kept = np.empty(top_k, preact.dtype)
    zero = preact.dtype.type(0)
    guess = zero
    for token in range(num_tokens):
        # Most of a row need not be looked at twice where the row before tells about how large the k-th value is.
        count = _kth_largest(preact, token, guess, kept)
        if count < top_k and guess > 0:
            count = _kth_largest(preact, token, zero, kept)
        counts[token] = count
        if count == 0:
            continue
        least = kept[count - 1]
        ties = 0
        for index in range(count):
            if kept[index] == least:
                ties += 1
        # Nothing is above infinity: the groups that hold it would be passed over.
        guess = least * preact.dtype.type(0.9) if least < np.inf else zero
        left = count
        for first in range(0, num_features, GROUP):
            last = min(first + GROUP, num_features)
            if last - first == GROUP and not any_above(preact, token, first, guess):
                continue
            for feature in range(first, last):
                value = preact[token, feature]
                if value < least or not value > 0:
                    continue
                if value == least:
                    if ties == 0:
                        continue
                    ties -= 1
                out_feature[place] = feature
                out_value[place] = value
                place += 1
                left -= 1
            if left == 0:
                break
    return place
