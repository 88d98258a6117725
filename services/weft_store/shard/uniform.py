"""
The codec `uniform`: mean removed, one step a layer and stream; `coding` makes bytes of the codes.

A uniform quantiser followed by an entropy coder is, at a given error, within a quarter of a bit of any other code that
takes values one by one.
The step is found so that the error really made is the wanted fraction of the variance. Channels are stored in the order
of their spread, in groups that have an entropy code each: channels of one spread have one distribution.
Shapes: T tokens of a shard or of a block, D d_model.
"""

from dataclasses import dataclass
from functools import cache
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from weft_common.errors import InvalidArgumentError

_TOLERANCE = 0.01
_ACCEPTED = 0.02
_MIN_STEP = float(np.finfo(np.float32).tiny)
_SAMPLED_TOKENS = 256
_ATTEMPTS = 24
_COUNTED_CODES = 1 << 16


@cache
def _loops() -> ModuleType:
    """Numba takes half a second to come, and whoever writes no codes need not have it."""
    from weft_store.shard import quantising

    return quantising


@dataclass(frozen=True, slots=True)
class Moments:
    """Float64 sums over the tokens of one stream of one layer."""

    mean_D: NDArray[np.float64]
    squared_deviation_D: NDArray[np.float64]
    mean_norm: float
    deviation_T: NDArray[np.float64]
    """Squared distance of each token from the mean."""

    @classmethod
    def of(cls, values_TD: NDArray[np.float32]) -> "Moments":
        """Measure finite values; everything is zero where there is no token."""
        mean = np.zeros(values_TD.shape[1])
        if len(values_TD):
            _loops().sums(values_TD, mean)
            mean /= len(values_TD)
        return cls.about(values_TD, mean)

    @classmethod
    def about(cls, values_TD: NDArray[np.float32], mean_D: NDArray[np.float64]) -> "Moments":
        """Measure deviations from what is given as the mean."""
        num_tokens, d_model = values_TD.shape
        squared, sizes, deviation = np.zeros(d_model), np.zeros(num_tokens), np.zeros(num_tokens)
        if num_tokens:
            _loops().deviations(values_TD, mean_D, squared, sizes, deviation)
        return cls(mean_D, squared, float(np.sqrt(sizes).sum()) / max(1, num_tokens), deviation)


@dataclass(frozen=True, slots=True)
class Quantised:
    """One stream of one layer: its step, and the squared error that its codes make."""

    step: np.float32
    mean_D: NDArray[np.float32]
    sum_squared_error: float


def quantise(
    values_TD: NDArray[np.float32], moments: Moments, target_fvu: float, codes_TD: NDArray[np.int32], what: str
) -> Quantised:
    """
    Find the step for a wanted FVU, and the codes.

    Args:
        values_TD: Finite values.
        moments: Theirs.
        target_fvu: Wanted ratio of squared error to squared deviation.
        codes_TD: Filled.
        what: The layer and stream, for errors.

    Raises:
        InvalidArgumentError: No step reaches that FVU within 2 %: the values vary too little or too much for float32.
    """
    total = float(moments.squared_deviation_D.sum())
    mean = moments.mean_D.astype(np.float32)
    step = np.float32(1.0)
    if total > 0:
        step = _first_step(values_TD, mean, moments, total, target_fvu)
    error = _apply(values_TD, mean, step, codes_TD, what)
    below: tuple[np.float32, float] | None = None
    last, low, high = step, 0.0, np.inf
    for _ in range(_ATTEMPTS):
        ratio = error / (target_fvu * total) if total > 0 else 1.0
        if ratio <= 1 + _ACCEPTED and (below is None or error > below[1]):
            below = (step, error)
        if abs(ratio - 1) <= _TOLERANCE:
            break
        low, high = (float(step), high) if ratio < 1 else (low, float(step))
        following = _next_step(float(step), ratio, low, high)
        if following == step:
            break
        last = step = following
        error = _apply(values_TD, mean, step, codes_TD, what)
    if below is None:
        raise InvalidArgumentError(
            f"{what} cannot be coded with a fraction of variance unexplained of {target_fvu}: its values vary too "
            "little beside their mean, or too little at all, for float32. Use the codec 'bf16'.",
            field="target_fvu",
        )
    if below[0] != last:
        _apply(values_TD, mean, below[0], codes_TD, what)
    return Quantised(below[0], mean, below[1])


def largest_size(values_TD: NDArray[np.float32]) -> float:
    """Give the largest size of a value, not a number where one is none."""
    return float(np.int32(_loops().largest_bits(values_TD.view(np.int32))).view(np.float32))


def entropy_bits(codes: NDArray[np.int32]) -> float:
    """Empirical entropy of codes, in bits a value, under one distribution."""
    if codes.size == 0:
        return 0.0
    counts = np.zeros(_COUNTED_CODES, np.int64)
    if _loops().count_codes(codes, counts):
        counts = np.unique(codes, return_counts=True)[1]
    counts = counts[counts > 0]
    shares = counts / codes.size
    return float(abs((shares * np.log2(shares)).sum()))


def _first_step(
    values: NDArray[np.float32], mean: NDArray[np.float32], moments: Moments, total: float, target_fvu: float
) -> np.float32:
    """Find a step on the largest tokens, whose error may be all there is, and an even sample of the others."""
    step = np.sqrt(12 * target_fvu * total / values.size)
    parts = [(values, 1.0)]
    if len(values) > 2 * _SAMPLED_TOKENS:
        by_size = np.argsort(moments.deviation_T, kind="stable")
        largest, others = by_size[-_SAMPLED_TOKENS // 4 :], by_size[: -_SAMPLED_TOKENS // 4]
        even = others[:: max(1, len(others) // _SAMPLED_TOKENS)]
        parts = [(values[largest], 1.0), (values[even], len(others) / len(even))]
    codes = np.empty((max(len(rows) for rows, _ in parts), values.shape[1]), np.int32)
    low, high = 0.0, np.inf
    for _ in range(_ATTEMPTS):
        scale = np.float32(max(step, _MIN_STEP))
        error = sum(weight * _error(rows, mean, scale, codes[: len(rows)])[0] for rows, weight in parts)
        ratio = error / (target_fvu * total)
        if abs(ratio - 1) < _TOLERANCE / 5:
            break
        low, high = (step, high) if ratio < 1 else (low, step)
        step = float(_next_step(step, ratio, low, high))
    return np.float32(max(step, _MIN_STEP))


def _next_step(step: float, ratio: float, low: float, high: float) -> np.float32:
    """Go where the square law points, or halve the interval where that leads out of it."""
    following = step * min(8.0, max(0.125, ratio**-0.5)) if ratio > 0 else step * 8
    if not low < following < high:
        following = np.sqrt(low * high) if low > 0 and np.isfinite(high) else step * (0.5 if ratio > 1 else 2.0)
    return np.float32(max(following, _MIN_STEP))


def _error(
    values: NDArray[np.float32], mean: NDArray[np.float32], step: np.float32, codes: NDArray[np.int32]
) -> tuple[float, float]:
    """Quantise; give the squared error of exactly what a reader will decode, and the size of the largest code."""
    error, peak = np.zeros(len(mean)), np.zeros(len(mean), np.float32)
    _loops().quantise_rows(values, mean, step, codes, error, peak)
    return float(error.sum()), float(peak.max(initial=0.0))


def _apply(
    values: NDArray[np.float32], mean: NDArray[np.float32], step: np.float32, codes: NDArray[np.int32], what: str
) -> float:
    error, peak = _error(values, mean, step, codes)
    if not peak < 2.0**31 - 128:
        raise InvalidArgumentError(
            f"{what} has values of more than 2**31 steps: ask for a larger target_fvu, or for 'bf16'.",
            field="target_fvu",
        )
    return error
