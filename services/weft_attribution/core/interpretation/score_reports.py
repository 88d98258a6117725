"""What came of tests of labels, over all features."""

from dataclasses import dataclass, field

from weft_attribution.core.interpretation.tallies import Pooled
from weft_attribution.core.labels import ScoreKind

__all__ = ["KindReport", "Scored"]


@dataclass
class KindReport:
    """
    One kind of test over all features.

    Args:
        values: Score of each feature.
        pooled: All decisions together, for detection and fuzzing.
        control: The same of shuffled labels.
    """

    values: list[float] = field(default_factory=list)
    pooled: Pooled = field(default_factory=Pooled)
    control: Pooled = field(default_factory=Pooled)


@dataclass
class Scored:
    """
    What came of it, in features.

    Args:
        scored: Have at least one new score.
        unlabelled: Have no label.
        too_few: Have too few examples that score.
        unanswered: Got no score, since answers were refused, broken or never came, or the label was changed meanwhile.
        reports: By kind.
    """

    scored: int = 0
    unlabelled: int = 0
    too_few: int = 0
    unanswered: int = 0
    reports: dict[ScoreKind, KindReport] = field(default_factory=dict)

    @property
    def done(self) -> int:
        """Features that are through."""
        return self.scored + self.unlabelled + self.too_few + self.unanswered
