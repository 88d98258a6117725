"""
Fronts of L0 against explained variance, and what two of them are compared by.

The two sides are compared at the other's L0, seed by seed: on the straight line, over log L0, between our two points
beside it. Beyond our densest point that point itself counts, which has fewer features than the other: never more than
was measured. Below our sparsest there is nothing to compare.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from .arms import PEER
from .points import Point

__all__ = ["Mean", "at_l0", "means", "rows", "spanning"]

_MARGIN = 0.1
"""By which k reaches beyond the L0s that it spans: on held-out tokens L0 is not quite k."""


@dataclass(frozen=True)
class Mean:
    """One setting of an arm, over its seeds."""

    side: str
    arm: str
    setting: str
    value: float
    points: list[Point]

    @property
    def l0(self) -> float:
        """Active features a token and layer."""
        return statistics.fmean(point.quality.l0 for point in self.points)

    @property
    def explained_variance(self) -> float:
        """Mean over layers."""
        return statistics.fmean(point.quality.explained_variance for point in self.points)

    @property
    def total_explained_variance(self) -> float:
        """Of the sums over layers."""
        return statistics.fmean(point.quality.total_explained_variance for point in self.points)

    @property
    def silent_share(self) -> float:
        """Of features."""
        return statistics.fmean(point.quality.silent_share for point in self.points)

    @property
    def spread(self) -> tuple[float, float]:
        """Lowest and highest explained variance of a seed."""
        found = [point.quality.explained_variance for point in self.points]
        return min(found), max(found)


def means(points: Iterable[Point]) -> list[Mean]:
    """Group points by side, arm and setting, in the order in which they come."""
    groups: dict[tuple[str, str, str, float], list[Point]] = {}
    for point in points:
        groups.setdefault((point.side, point.arm, point.setting, point.value), []).append(point)
    return [Mean(*key, members) for key, members in groups.items()]


def spanning(l0s: Sequence[float], num_features: int, *, count: int = 4) -> list[int]:
    """
    Return values of k from below the least of some L0s to above the largest, as even as whole numbers are over log k.

    Args:
        l0s: At least one, above 0.
        num_features: Of a layer; k is at most half of it.

    >>> spanning([20.0, 70.0], 1024)
    [18, 29, 48, 77]
    """
    most = num_features // 2
    low = min(max(1, math.floor((1 - _MARGIN) * min(l0s))), most)
    high = max(low, min(math.ceil((1 + _MARGIN) * max(l0s)), most))
    return sorted({round(low * (high / low) ** (number / (count - 1))) for number in range(count)})


def at_l0(front: Iterable[tuple[float, float]], l0: float) -> float | None:
    """
    Read a front at an L0.

    Args:
        front: L0, above 0, and explained variance of its points, in any order.

    >>> at_l0([(10, 0.2), (40, 0.4)], 20), at_l0([(10, 0.2), (40, 0.4)], 100), at_l0([(10, 0.2)], 5)
    (0.30000000000000004, 0.4, None)
    """
    ordered = sorted(front)
    below = [point for point in ordered if point[0] <= l0]
    if not below:
        return None
    (low, low_ev), above = below[-1], ordered[len(below) :]
    if not above:
        return low_ev
    high, high_ev = above[0]
    share = (math.log(l0) - math.log(low)) / (math.log(high) - math.log(low))
    return low_ev + share * (high_ev - low_ev)


def rows(points: Sequence[Point], conditions: str) -> Iterator[dict[str, object]]:
    """
    Yield a row for each of our arms against each setting of the peer's, in which every seed can be compared.

    Args:
        points: Of both sides.
        conditions: What was measured under, for every row.
    """
    grouped = means(points)
    ours_by_arm: dict[str, list[Point]] = {}
    for point in points:
        if point.side != PEER:
            ours_by_arm.setdefault(point.arm, []).append(point)
    for peer in (mean for mean in grouped if mean.side == PEER):
        for arm, members in ours_by_arm.items():
            ours = [
                at_l0(
                    [(each.quality.l0, each.quality.explained_variance) for each in members if each.seed == other.seed],
                    other.quality.l0,
                )
                for other in peer.points
            ]
            found = [value for value in ours if value is not None]
            if len(found) < len(ours):
                continue
            mine, theirs = statistics.fmean(found), peer.explained_variance
            seeds = ", ".join(
                f"seed {other.seed}: {own:.4f} and {other.quality.explained_variance:.4f}"
                for own, other in zip(found, peer.points, strict=True)
            )
            densest = max(each.quality.l0 for each in members)
            beyond = f"; the arm's densest point has L0 {densest:.1f}" if densest < peer.l0 else ""
            yield {
                "name": f"explained variance at L0 {peer.l0:.1f}, {arm}, against {PEER}, {peer.arm}",
                "ours": mine,
                "peer": theirs,
                # Of two shares the quotient says something only where both are above 0.
                "ratio": mine / theirs if theirs > 0 else None,
                "unit": "share of variance",
                "conditions": f"{conditions}; {PEER} with lambda {peer.value:g}; {seeds}{beyond}",
            }
