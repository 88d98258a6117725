"""
What a histogram of half octaves tells of a feature's activations: percentiles, and bars of one width.

Within a bin activations are taken to lie evenly, so that a percentile is right to its bin, and the largest exactly.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from weft_attribution.core.feature_index.gathering import bin_edges

__all__ = ["Distribution"]

Array = npt.NDArray[Any]


class Distribution:
    """
    The activations of one feature, where it is active.

    Args:
        histogram: Tokens by bin, as an index keeps them.
        largest: The largest activation; 0 where there is none.

    >>> half = Distribution([0] * 24 + [3, 1] + [0] * 22, 1.6)
    >>> half.total, round(half.percentile(0.75), 3), round(half.share_below(1.2), 3)
    (4, 1.414, 0.362)
    """

    def __init__(self, histogram: Sequence[int], largest: float) -> None:
        counts_B = np.asarray(histogram, np.float64)
        there = np.flatnonzero(counts_B)
        num_bins = int(there[-1]) + 1 if len(there) else 0
        self.total = int(counts_B.sum())
        self.largest = float(largest)
        self._count_B = counts_B[:num_bins]
        self._edges = bin_edges()[: num_bins + 1].copy()
        # The first bin takes what lies below it, and nothing lies above the largest.
        self._edges[0] = 0.0
        if num_bins:
            self._edges[-1] = max(self.largest, float(np.nextafter(self._edges[-2], np.inf)))
        self._before = np.concatenate([[0.0], np.cumsum(self._count_B)])

    def share_below(self, value: float) -> float:
        """Share of the activations that lie below a value."""
        if not self.total:
            return 0.0
        return float(np.interp(value, self._edges, self._before)) / self.total

    def percentile(self, share: float) -> float:
        """The value that a share of the activations, above 0 to 1, does not exceed; 0 where there are none."""
        if not self.total:
            return 0.0
        wanted = share * self.total
        at = min(int(np.searchsorted(self._before[1:], wanted)), len(self._count_B) - 1)
        within = (wanted - self._before[at]) / self._count_B[at]
        return float(self._edges[at] + within * (self._edges[at + 1] - self._edges[at]))

    def bars(self, count: int) -> tuple[Array, Array]:
        """Middles and heights, in tokens, of bars of one width from 0 to the largest activation; none where it is 0."""
        if not self.total:
            return np.zeros(0), np.zeros(0)
        edges = np.linspace(0.0, self._edges[-1], count + 1)
        heights = np.diff(np.interp(edges, self._edges, self._before))
        return (edges[1:] + edges[:-1]) / 2, heights
