"""Long work on features between what is stored of it and messages."""

from collections.abc import Iterable, Mapping

from google.longrunning import operations_pb2
from google.protobuf import any_pb2

from weft.features.v1 import index_pb2, interpretation_pb2, jobs_pb2, labels_pb2
from weft_attribution.converting_interpretation import SCORE_NUMBERS
from weft_attribution.core.interpretation.results import Ending, FeatureResult, Rating
from weft_attribution.timestamps import timestamp
from weft_common.errors import Code, InternalError, InvalidArgumentError
from weft_common.operation_kinds import unpack_any
from weft_common.operation_store import Record

__all__ = ["asked_for", "endings_from_proto", "index_job_to_proto", "interpretation_to_proto", "result_to_proto"]

Asked = interpretation_pb2.ExplainFeaturesRequest | interpretation_pb2.ScoreFeaturesRequest
_ENDINGS: Mapping[Ending, jobs_pb2.FeatureOutcome.ValueType] = {
    ending: jobs_pb2.FeatureOutcome.Value(f"FEATURE_OUTCOME_{ending.name}") for ending in Ending
}
_NUMBERS = {number: ending for ending, number in _ENDINGS.items()}


def asked_for(name: str, record: Record) -> Asked:
    """What stored interpretation was asked for."""
    request = unpack_any(any_pb2.Any.FromString(record.request))
    if not isinstance(request, Asked):
        raise InternalError(f"{name} asks for {request.DESCRIPTOR.full_name}, which is no interpretation")
    return request


def interpretation_to_proto(name: str, record: Record) -> jobs_pb2.Interpretation:
    """What ExplainFeatures or ScoreFeatures has started, without the features that were named: they may be many."""
    operation, request = record.to_operation(name), asked_for(name, record)
    metadata = interpretation_pb2.InterpretationMetadata()
    operation.metadata.Unpack(metadata)
    found = jobs_pb2.Interpretation(
        operation=name,
        parent=metadata.parent,
        num_named=len(request.scope.features),
        state=_state(record, operation, is_begun=metadata.progress.stage != "waiting"),
        progress=metadata.progress,
        spend=metadata.spend,
        reports=metadata.reports,
        error_message=operation.error.message,
        create_time=timestamp(record.create_s),
        end_time=timestamp(record.update_s) if record.done else None,
    )
    del request.scope.features[:]
    if isinstance(request, interpretation_pb2.ExplainFeaturesRequest):
        found.explain.CopyFrom(request)
        if operation.HasField("response"):
            operation.response.Unpack(found.explained)
            found.spend.CopyFrom(found.explained.spend)
    else:
        found.score.CopyFrom(request)
        if operation.HasField("response"):
            operation.response.Unpack(found.scored)
            found.spend.CopyFrom(found.scored.spend)
            del found.reports[:]
            found.reports.extend(found.scored.reports)
    return found


def result_to_proto(parent: str, position: int, result: FeatureResult) -> jobs_pb2.InterpretedFeature:
    """What came of one feature."""
    layer, index = result.place
    return jobs_pb2.InterpretedFeature(
        name=f"{parent}/features/{layer}-{index}",
        layer=layer,
        index=index,
        position=position,
        outcome=_ENDINGS[result.ending],
        label=result.label,
        reason=result.reason,
        scores=[_score(each) for each in result.tests if not each.is_control],
        control_scores=[_score(each) for each in result.tests if each.is_control],
    )


def endings_from_proto(numbers: Iterable[jobs_pb2.FeatureOutcome.ValueType]) -> frozenset[Ending]:
    """Which features are wanted, by what came of them; none means all. InvalidArgumentError."""
    for number in numbers:
        if number not in _NUMBERS:
            raise InvalidArgumentError(f"outcomes has {number}, which is none; see FeatureOutcome", field="outcomes")
    return frozenset(_NUMBERS[number] for number in numbers)


def index_job_to_proto(name: str, record: Record) -> jobs_pb2.IndexJob | None:
    """Work on an index; None once the index is whole."""
    operation, metadata = record.to_operation(name), index_pb2.FeatureIndexMetadata()
    if operation.HasField("response") or not operation.metadata.Unpack(metadata):
        return None
    request = unpack_any(any_pb2.Any.FromString(record.request))
    assert isinstance(request, index_pb2.IndexFeaturesRequest)
    return jobs_pb2.IndexJob(
        index=metadata.index,
        operation=name,
        request=request,
        state=_state(record, operation, is_begun=metadata.progress.stage != "waiting"),
        progress=metadata.progress,
        error_message=operation.error.message,
        create_time=timestamp(record.create_s),
    )


def _state(record: Record, operation: operations_pb2.Operation, *, is_begun: bool) -> jobs_pb2.JobState.ValueType:
    if operation.HasField("error"):
        is_cancelled = operation.error.code == Code.CANCELLED.value
        return jobs_pb2.JOB_STATE_CANCELLED if is_cancelled else jobs_pb2.JOB_STATE_FAILED
    if record.done:
        return jobs_pb2.JOB_STATE_SUCCEEDED
    if record.cancel_requested:
        return jobs_pb2.JOB_STATE_CANCELLING
    return jobs_pb2.JOB_STATE_RUNNING if is_begun else jobs_pb2.JOB_STATE_WAITING


def _score(test: Rating) -> labels_pb2.LabelScore:
    return labels_pb2.LabelScore(
        kind=SCORE_NUMBERS[test.kind],
        value=test.value,
        low=test.low,
        high=test.high,
        num_trials=test.n,
        num_unanswered=test.unanswered,
    )
