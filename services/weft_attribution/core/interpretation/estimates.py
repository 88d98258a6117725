"""
Scores with their intervals, 95 % each.

Sources: Wilson 1927 for a share; Newcombe 1998, method 10, for what two independent shares come to together; Birnbaum
and Klose 1957 for the variance of the area under a ROC curve, which is never above A(1 - A) / min(m, n).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Estimate", "area", "balanced_accuracy", "share"]

_Z = 1.959963984540054


@dataclass(frozen=True)
class Estimate:
    """
    A score.

    Args:
        value: 0 to 1.
        low: Lower end of its interval.
        high: Upper end.
        n: Trials behind it.
    """

    value: float
    low: float
    high: float
    n: int


def share(successes: float, n: int) -> Estimate | None:
    """
    So many successes of n, by Wilson's interval; None without trials.

    >>> found = share(8, 10)
    >>> round(found.low, 3), round(found.high, 3)
    (0.49, 0.943)
    """
    if n <= 0:
        return None
    p = successes / n
    centre = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n * n))
    return Estimate(p, max(0.0, centre - half), min(1.0, centre + half), n)


def balanced_accuracy(hits: int, num_positive: int, rejections: int, num_negative: int) -> Estimate | None:
    """
    The mean of both shares of right decisions; None where one kind of example is missing.

    Args:
        hits: Positive examples that were taken for such.
        num_positive: Positive examples that were decided.
        rejections: Negative examples that were taken for such.
        num_negative: Negative examples that were decided.
    """
    true, false = share(hits, num_positive), share(rejections, num_negative)
    if true is None or false is None:
        return None
    value = (true.value + false.value) / 2
    below = math.hypot(true.value - true.low, false.value - false.low) / 2
    above = math.hypot(true.high - true.value, false.high - false.value) / 2
    return Estimate(value, max(0.0, value - below), min(1.0, value + above), num_positive + num_negative)


def area(positive: Sequence[float], negative: Sequence[float]) -> Estimate | None:
    """The chance that a positive example lies above a negative one, half for ties; None where one kind is missing."""
    if not len(positive) or not len(negative):
        return None
    difference = np.subtract.outer(np.asarray(positive, np.float64), np.asarray(negative, np.float64))
    value = float(np.mean((difference > 0) + 0.5 * (difference == 0)))
    few = min(len(positive), len(negative))
    found = share(value * few, few)
    assert found is not None
    return Estimate(value, found.low, found.high, len(positive) + len(negative))
