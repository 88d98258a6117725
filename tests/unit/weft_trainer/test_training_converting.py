"""Messages and documents say the same."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.training.v1 import messages_pb2, service_pb2
from weft_trainer import converting
from weft_trainer.core.records import RunRecord, RunState, Transition, check_transition
from weft_trainer.core.reports import Directive


@given(
    st.integers(0, 2**31 - 1),
    st.integers(0, 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
)
def test_spec_survives_the_way_through_a_run(features: int, seed: int, rate: float, through: bool) -> None:
    """What was asked for is what GetRun shows, to the last bit."""
    spec = messages_pb2.TrainingSpec(
        dataset="datasets/d",
        num_features=features,
        seed=seed,
        learning_rate=rate,
        gradient_through_threshold=through,
        activation=messages_pb2.ACTIVATION_JUMP_RELU,
    )
    record = RunRecord(run="r", spec=converting.spec_from_proto(spec), create_time="2026-01-02T03:04:05.000006Z")
    again = RunRecord.from_document(record.to_document())
    assert converting.run_to_proto(again).spec == spec


def test_spec_keeps_its_schedules_and_scales() -> None:
    """Pieces come in their order, enums by their names, and both ways agree."""
    piece = messages_pb2.SchedulePiece(until=1.0, shape=messages_pb2.SCHEDULE_SHAPE_COSINE, factor=0.1)
    spec = messages_pb2.TrainingSpec(
        learning_rate_schedule=[messages_pb2.SchedulePiece(until=0.25, factor=1.0), piece],
        scales=messages_pb2.SCALES_TIED,
    )
    document = converting.spec_from_proto(spec)
    assert document["scales"] == "SCALES_TIED"
    assert document["learning_rate_schedule"][1] == {"until": 1.0, "shape": "SCHEDULE_SHAPE_COSINE", "factor": 0.1}
    record = RunRecord(run="r", spec=document, create_time="2026-01-02T03:04:05Z")
    assert converting.run_to_proto(RunRecord.from_document(record.to_document())).spec == spec


def test_run_of_an_earlier_version_is_shown_without_what_came_later() -> None:
    """Its document lacks the newer fields; they stay unset."""
    document = {"dataset": "datasets/d", "activation": "ACTIVATION_TOP_K", "top_k": 3}
    record = RunRecord(run="r", spec=document, create_time="2026-01-02T03:04:05Z")
    wanted = messages_pb2.TrainingSpec(dataset="datasets/d", activation=messages_pb2.ACTIVATION_TOP_K, top_k=3)
    assert converting.run_to_proto(record).spec == wanted


@pytest.mark.parametrize(
    ("field", "encoded"),
    [("scales", b"\xf0\x02\x09"), ("moments", b"\x80\x03\x09"), ("parameters", b"\x88\x03\x09")],
)
def test_unknown_choices_are_refused_later(field: str, encoded: bytes) -> None:
    """A number without a name does not pass for the default."""
    spec = messages_pb2.TrainingSpec()
    spec.ParseFromString(encoded)
    assert converting.spec_from_proto(spec)[field] == ""


def test_unknown_activation_counts_as_not_set() -> None:
    """A number without a name is refused later like the one that means nothing."""
    spec = messages_pb2.TrainingSpec()
    spec.ParseFromString(b"\x18\x63")
    assert converting.spec_from_proto(spec)["activation"] == "ACTIVATION_UNSPECIFIED"


def test_metrics_that_are_no_numbers_pass_through_documents() -> None:
    """A loss that is not finite becomes null in JSON and NaN again for the watcher."""
    request = service_pb2.ReportRequest(attempt=1, metrics=[messages_pb2.Metrics(step=3, loss=math.inf, l0=2.5)])
    report = converting.report_from_proto("r", request)
    assert report.metrics[0]["loss"] is None
    shown = converting.metrics_to_proto(report.metrics[0])
    assert math.isnan(shown.loss)
    assert (shown.step, shown.l0) == (3, 2.5)


def test_evaluation_keeps_its_lists() -> None:
    """Figures by layer stay in their order."""
    evaluation = messages_pb2.Evaluation(step=1, tokens=9, l0_by_layer=[1.5, 2.5], explained_variance=0.25)
    assert converting.evaluation_to_proto(converting.fields_of(evaluation)) == evaluation


def test_evaluation_takes_the_replacement_scores_of_its_document() -> None:
    """Scores of all layers and of each are where the document has them; a share that is no number stays none."""
    score = {"cross_entropy": 4.0, "kl_divergence": 0.5, "top1_agreement": 0.75, "recovered": None}
    document = {
        "step": 1,
        "replacement": {"tokens": 9, "cross_entropy": 3.5, "all": score, "by_layer": [score | {"recovered": 0.25}]},
    }
    found = converting.evaluation_to_proto(document).replacement
    assert (found.tokens, found.cross_entropy, found.all.kl_divergence) == (9, 3.5, 0.5)
    assert math.isnan(found.all.recovered)
    assert [each.recovered for each in found.by_layer] == [0.25]


def test_transcoder_takes_what_it_knows_from_a_manifest() -> None:
    """Keys beyond the message are passed over; a manifest without prefix stands for its own folder."""
    manifest = {
        "name": "transcoders/t",
        "num_layers": 3,
        "files": ["config.yaml"],
        "evaluation": {"step": 5, "explained_variance": 0.5},
        "create_time": "2026-01-02T03:04:05Z",
    }
    transcoder = converting.transcoder_to_proto(manifest)
    assert (transcoder.num_layers, transcoder.evaluation.step, transcoder.prefix) == (3, 5, "transcoders/t/")
    assert transcoder.create_time.ToJsonString() == "2026-01-02T03:04:05Z"


@pytest.mark.parametrize("state", list(RunState))
def test_every_state_and_transition_has_a_message(state: RunState) -> None:
    """No state of the core is without its number in the contract."""
    record = RunRecord(
        run="r",
        spec=converting.spec_from_proto(messages_pb2.TrainingSpec(num_steps=5)),
        create_time="2026-01-02T03:04:05Z",
        state=state,
        transitions=(Transition(state, "2026-01-02T03:04:05Z", "why"),),
    )
    run = converting.run_to_proto(record)
    assert messages_pb2.RunState.Name(run.state) == f"RUN_STATE_{state}"
    assert run.transitions[0].state == run.state
    assert converting.metadata_to_proto(record).progress.total == 5


@pytest.mark.parametrize("directive", list(Directive))
def test_every_directive_has_a_message(directive: Directive) -> None:
    """What the desk says can be sent."""
    assert service_pb2.Directive.Name(converting.directive_to_proto(directive)) == f"DIRECTIVE_{directive.name}"


def test_final_states_are_left_by_resume_alone() -> None:
    """Only a failed run can go on; a succeeded or cancelled one never changes."""
    for old in (RunState.SUCCEEDED, RunState.CANCELLED):
        for new in RunState:
            with pytest.raises(Exception, match="cannot become"):
                check_transition(old, new)
    check_transition(RunState.FAILED, RunState.PENDING)


def test_damaged_checkpoint_is_told_in_words() -> None:
    """The run's history says which attempt left which checkpoint for which; a report without damage says nothing."""
    damaged = service_pb2.DamagedCheckpoint(step=4, reason="its file is gone", resumed_step=2)
    report = converting.report_from_proto("r", service_pb2.ReportRequest(attempt=3, damaged_checkpoint=damaged))
    assert report.notice == "attempt 3 goes on from step 2, as checkpoint 4 is damaged: its file is gone"
    assert converting.report_from_proto("r", service_pb2.ReportRequest(attempt=3)).notice == ""
