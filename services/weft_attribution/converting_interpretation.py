"""Interpretation between messages and the domain."""

import time
from collections.abc import Mapping

from weft.common.v1 import operation_pb2
from weft.features.v1 import interpretation_pb2, labels_pb2
from weft_attribution.core.interpretation.budget import Spend
from weft_attribution.core.interpretation.explaining import Explained, ExplainSettings
from weft_attribution.core.interpretation.score_reports import KindReport, Scored
from weft_attribution.core.interpretation.tallies import Pooled
from weft_attribution.core.labels import ScoreKind
from weft_attribution.timestamps import timestamp
from weft_common.errors import InvalidArgumentError

__all__ = [
    "SCORE_NUMBERS",
    "explained_to_proto",
    "kinds_from_proto",
    "metadata_to_proto",
    "reports_to_proto",
    "scored_to_proto",
    "spend_from_proto",
]

SCORE_NUMBERS: Mapping[ScoreKind, labels_pb2.ScoreKind.ValueType] = {
    ScoreKind.DETECTION: labels_pb2.SCORE_KIND_DETECTION,
    ScoreKind.FUZZING: labels_pb2.SCORE_KIND_FUZZING,
    ScoreKind.INTRUDER: labels_pb2.SCORE_KIND_INTRUDER,
    ScoreKind.EMBEDDING: labels_pb2.SCORE_KIND_EMBEDDING,
}
_KINDS = {number: kind for kind, number in SCORE_NUMBERS.items()}
_DEFAULT_KINDS = (ScoreKind.DETECTION, ScoreKind.FUZZING)


def kinds_from_proto(numbers: list[labels_pb2.ScoreKind.ValueType]) -> tuple[ScoreKind, ...]:
    """The tests that are asked for, each once. InvalidArgumentError."""
    for number in numbers:
        if number not in _KINDS:
            raise InvalidArgumentError(f"kinds has {number}, which is no test", field="kinds")
    return tuple(dict.fromkeys(_KINDS[number] for number in numbers)) or _DEFAULT_KINDS


def spend_to_proto(spend: Spend) -> interpretation_pb2.InterpretationSpend:
    """What was spent."""
    return interpretation_pb2.InterpretationSpend(
        calls=spend.calls,
        question_tokens=spend.question_tokens,
        answer_tokens=spend.answer_tokens,
        num_answered=spend.answered,
        num_refused=spend.refused,
        num_rejected=spend.rejected,
        num_broken=spend.broken,
        num_failed=spend.failed,
        num_reused=spend.reused,
    )


def spend_from_proto(spend: interpretation_pb2.InterpretationSpend) -> Spend:
    """What was told to be spent."""
    return Spend(
        spend.calls,
        spend.question_tokens,
        spend.answer_tokens,
        spend.num_answered,
        spend.num_refused,
        spend.num_rejected,
        spend.num_broken,
        spend.num_failed,
        spend.num_reused,
    )


def metadata_to_proto(
    parent: str, stage: str, create_s: float, done: int, total: int, spend: Spend
) -> interpretation_pb2.InterpretationMetadata:
    """How far the work is."""
    return interpretation_pb2.InterpretationMetadata(
        parent=parent,
        progress=operation_pb2.Progress(
            stage=stage,
            completed=done,
            total=total,
            unit="features",
            create_time=timestamp(create_s),
            update_time=timestamp(time.time()),
        ),
        spend=spend_to_proto(spend),
    )


def explained_to_proto(
    parent: str, explained: Explained, total: int, spend: Spend, settings: ExplainSettings
) -> interpretation_pb2.ExplainFeaturesResponse:
    """What came of explaining."""
    return interpretation_pb2.ExplainFeaturesResponse(
        parent=parent,
        num_features=total,
        num_labelled=explained.labelled,
        num_kept=explained.kept,
        num_too_few=explained.too_few,
        num_unlabelled=explained.unlabelled,
        num_left=total - explained.done,
        spend=spend_to_proto(spend),
        explainer=settings.model,
        prompt=settings.prompt.name,
    )


def scored_to_proto(parent: str, scored: Scored, total: int, spend: Spend) -> interpretation_pb2.ScoreFeaturesResponse:
    """What came of scoring."""
    return interpretation_pb2.ScoreFeaturesResponse(
        parent=parent,
        num_features=total,
        num_scored=scored.scored,
        num_unlabelled=scored.unlabelled,
        num_too_few=scored.too_few,
        num_unanswered=scored.unanswered,
        num_left=total - scored.done,
        spend=spend_to_proto(spend),
        reports=reports_to_proto(scored.reports),
    )


def reports_to_proto(reports: Mapping[ScoreKind, KindReport]) -> list[interpretation_pb2.ScoreReport]:
    """Every test over all features."""
    return [_report(kind, report) for kind, report in reports.items()]


def _report(kind: ScoreKind, report: KindReport) -> interpretation_pb2.ScoreReport:
    return interpretation_pb2.ScoreReport(
        kind=SCORE_NUMBERS[kind],
        num_features=len(report.values),
        mean=sum(report.values) / len(report.values) if report.values else 0.0,
        pooled=_pooled(report.pooled),
        control=_pooled(report.control),
    )


def _pooled(pooled: Pooled) -> interpretation_pb2.PooledScore | None:
    found = pooled.estimate()
    if found is None:
        return None
    return interpretation_pb2.PooledScore(
        value=found.value, low=found.low, high=found.high, num_trials=found.n, num_unanswered=pooled.unanswered
    )
