"""How protobuf messages become the page's JSON."""

import json
import math

from weft.attribution.v1 import messages_pb2 as graph_pb2
from weft.features.v1 import index_pb2
from weft.features.v1 import service_pb2 as features_pb2
from weft.training.v1 import messages_pb2 as run_pb2
from weft_console.messages import to_json


def test_enums_times_and_integers_are_plain() -> None:
    """States are short words, times ISO 8601 with their zone, 64-bit integers numbers."""
    run = run_pb2.Run(name="runs/r", state=run_pb2.RUN_STATE_RUNNING, step=1 << 40)
    run.create_time.FromJsonString("2026-01-02T03:04:05Z")
    run.spec.activation = run_pb2.ACTIVATION_JUMP_RELU
    run.spec.seed = (1 << 64) - 1
    result = to_json(run)
    assert result["state"] == "running"
    assert result["step"] == 1 << 40
    assert result["create_time"] == "2026-01-02T03:04:05+00:00"
    assert result["spec"]["activation"] == "jump_relu"
    assert result["spec"]["seed"] == str((1 << 64) - 1)


def test_unset_messages_are_null_and_lists_empty() -> None:
    """The page can tell nothing from zero."""
    result = to_json(run_pb2.Run())
    assert result["metrics"] is None
    assert result["evaluation"] is None
    assert result["transitions"] == []
    assert result["state"] == "unspecified"
    assert to_json(features_pb2.Feature())["threshold"] is None
    assert to_json(features_pb2.Feature(threshold=0.0))["threshold"] == 0.0


def test_numbers_that_json_lacks_are_null() -> None:
    """A loss that overflowed reaches the page as nothing, and the JSON stays valid."""
    result = to_json(run_pb2.Metrics(step=3, loss=math.nan, gradient_norm=math.inf))
    assert result["loss"] is None
    assert result["gradient_norm"] is None
    assert json.loads(json.dumps(result, allow_nan=False))["step"] == 3


def test_bytes_stay_behind_and_unset_arms_say_nothing() -> None:
    """A graph's file travels on its own; of a oneof only what was chosen is told."""
    assert "json" not in to_json(graph_pb2.Graph(json=b"{}"))
    change = to_json(graph_pb2.FeatureIntervention(node_id="1_2_3", factor=0.0))
    assert change == {"node_id": "1_2_3", "factor": 0.0}
    assert to_json(graph_pb2.FeatureIntervention(node_id="1_2_3", value=2.0)) == {"node_id": "1_2_3", "value": 2.0}


def test_value_of_a_newer_enum_is_its_number() -> None:
    """A state that this build does not know is shown and does not break the page."""
    assert to_json(graph_pb2.Graph(state=99))["state"] == "99"  # type: ignore[arg-type]


def test_maps_are_objects() -> None:
    """Scores of a label come by their kind."""
    label = index_pb2.StandingLabel(text="months", scores={"fuzzing": 0.5, "detection": 0.75})
    assert to_json(label) == {
        "text": "months",
        "is_human": False,
        "scores": {"detection": 0.75, "fuzzing": 0.5},
        "explainer": "",
        "is_imported": False,
    }
