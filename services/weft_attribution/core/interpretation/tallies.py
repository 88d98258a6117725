"""Right and wrong decisions, added up to scores."""

from collections.abc import Sequence
from dataclasses import dataclass

from weft_attribution.core.interpretation.estimates import Estimate, balanced_accuracy, clustered, share

__all__ = ["Found", "Pooled", "Tally"]


@dataclass
class Tally:
    """
    Decisions on lines.

    Args:
        hits: Lines of the feature that were taken for such.
        positive: Lines of the feature that were decided.
        rejections: Other lines that were taken for such.
        negative: Other lines that were decided.
        unanswered: Lines that nobody decided.
    """

    hits: int = 0
    positive: int = 0
    rejections: int = 0
    negative: int = 0
    unanswered: int = 0

    def decide(self, truth: Sequence[bool], flags: Sequence[bool] | None) -> None:
        """Count the decisions on one question's lines; None where there are none."""
        if flags is None:
            self.unanswered += len(truth)
            return
        for true, flag in zip(truth, flags, strict=True):
            self.positive += true
            self.hits += true and flag
            self.negative += not true
            self.rejections += not true and not flag

    def estimate(self) -> Estimate | None:
        """Balanced accuracy over all decisions; None where one kind of line was never decided."""
        return balanced_accuracy(self.hits, self.positive, self.rejections, self.negative)


class Pooled:
    """
    Decisions over many features, of which each is one draw: its lines are alike, and share its label.

    Sums and sums of products are all that is held, however many features there are.
    """

    def __init__(self) -> None:
        self.num_features = self.unanswered = 0
        self._sums = [0] * 4
        self._products = [[0] * 4 for _ in range(4)]

    def add(self, tally: Tally) -> None:
        """Take one feature's decisions in."""
        self.unanswered += tally.unanswered
        found = (tally.hits, tally.positive, tally.rejections, tally.negative)
        if not any(found):
            return
        self.num_features += 1
        for at, value in enumerate(found):
            self._sums[at] += value
            for other, second in enumerate(found):
                self._products[at][other] += value * second

    def estimate(self) -> Estimate | None:
        """Balanced accuracy over all decisions, with an interval over features; None as of a tally."""
        return clustered(self._sums, self._products, self.num_features)


@dataclass
class Found:
    """Intruders that were found, of those that were looked for."""

    right: int = 0
    n: int = 0
    unanswered: int = 0

    def decide(self, is_right: bool | None) -> None:
        """Count one question; None where it was not answered."""
        if is_right is None:
            self.unanswered += 1
        else:
            self.n += 1
            self.right += is_right

    def estimate(self) -> Estimate | None:
        """The share of right answers."""
        return share(self.right, self.n)
