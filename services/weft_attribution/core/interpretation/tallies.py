"""Right and wrong decisions, added up to scores."""

from collections.abc import Sequence
from dataclasses import dataclass

from weft_attribution.core.interpretation.estimates import Estimate, balanced_accuracy, share

__all__ = ["Found", "Tally"]


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

    def add(self, other: "Tally") -> None:
        """Take another's decisions in."""
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def estimate(self) -> Estimate | None:
        """Balanced accuracy over all decisions; None where one kind of line was never decided."""
        return balanced_accuracy(self.hits, self.positive, self.rejections, self.negative)


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
