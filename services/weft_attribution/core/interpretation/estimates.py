"""
Scores with their intervals, 95 % each.

Sources: Wilson 1927 for a share; Newcombe 1998, method 10, for what two independent shares come to together; Birnbaum
and Klose 1957 for the variance of the area under a ROC curve, which is never above A(1 - A) / min(m, n); Fisher and
Cornish 1960 for Student's t.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Estimate", "area", "balanced_accuracy", "clustered", "share"]

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


def clustered(sums: Sequence[int], products: Sequence[Sequence[int]], num_features: int) -> Estimate | None:
    """
    Balanced accuracy over features that differ, with an interval for other features like these.

    Its variance is that of the linearised ratio over features, and Student's t takes the place of the normal. It is
    never narrower than that of decisions that know nothing of each other, which is all that one feature has.

    Args:
        sums: Hits, positive, rejections and negative, as `balanced_accuracy` has them, over all features.
        products: Sums of their products within features, 4 by 4.
        num_features: Features behind it.
    """
    apart = balanced_accuracy(*sums)
    if apart is None or num_features < 2:
        return apart
    hits, positive, rejections, negative = sums
    slopes = (1 / positive, -hits / positive**2, 1 / negative, -rejections / negative**2)
    square = sum(a * b * product for a, row in zip(slopes, products, strict=True)
                 for b, product in zip(slopes, row, strict=True)) / 4  # fmt: skip
    error = math.sqrt(max(0.0, square) * num_features / (num_features - 1))
    half = _student(num_features - 1) * error
    low, high = min(apart.low, apart.value - half), max(apart.high, apart.value + half)
    return Estimate(apart.value, max(0.0, low), min(1.0, high), apart.n)


def _student(freedom: int) -> float:
    """Student's t at 97.5 %: exact for 1 and 2 degrees of freedom, else by Fisher's expansion, within 1 %."""
    if freedom == 1:
        return math.tan(0.475 * math.pi)
    if freedom == 2:
        return 0.95 * math.sqrt(2 / (1 - 0.95**2))
    z, v = _Z, freedom
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / v + second / v**2 + third / v**3


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
