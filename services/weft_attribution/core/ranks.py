"""Rank correlation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["spearman"]

Array = npt.NDArray[Any]


def spearman(first: Sequence[float] | Array, other: Sequence[float] | Array) -> float | None:
    """
    Spearman's rank correlation, equal values at the mean of their ranks; None where one side does not vary.

    >>> spearman([1.0, 2.0, 3.0], [10.0, 30.0, 20.0])
    0.5
    """
    ranks = [_ranks(np.asarray(values, dtype=np.float64)) for values in (first, other)]
    centred = [each - each.mean() for each in ranks if len(each)]
    if len(centred) < 2 or not all(each.any() for each in centred):
        return None
    length = float(np.sqrt((centred[0] @ centred[0]) * (centred[1] @ centred[1])))
    return float(centred[0] @ centred[1]) / length


def _ranks(values: Array) -> Array:
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[group])
