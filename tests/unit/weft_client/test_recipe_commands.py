"""Published recipes on the command line, in a run file, and in a plan."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from weft.training.v1 import messages_pb2
from weft_client.cli import app
from weft_client.run_file import read_run_file
from weft_client.specs import recipe_spec, training_spec
from weft_clt.config import TrainingConfig
from weft_clt.recipes import RECIPES, RunSize
from weft_common.errors import InvalidArgumentError
from weft_trainer.converting import spec_from_proto

PLAN = ("plan", "smollm2-135m", "--num-features", "512", "--tokens", "40000", "--step-tokens", "1024", "--json")


def _write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", RECIPES)
def test_spec_of_a_recipe_is_what_the_trainer_reads(name: str) -> None:
    """From the recipe through the message to the trainer's configuration nothing is lost."""
    spec = recipe_spec(name, dataset="datasets/d", num_features=4096, num_steps=2000)
    wanted = RECIPES[name].make(RunSize("datasets/d", num_features=4096, num_steps=2000))
    assert TrainingConfig.from_spec(spec_from_proto(spec)) == wanted


def test_what_is_given_beside_a_recipe_wins() -> None:
    """Zero and an empty schedule included."""
    spec = recipe_spec(
        "clt-forge-llama-1b",
        dataset="datasets/d",
        num_features=64,
        clip_norm=0.0,
        sparsity_schedule=[],
        sparsity_ramp_share=0.5,
    )
    assert (spec.clip_norm, len(spec.sparsity_schedule), spec.sparsity_ramp_share) == (0, 0, 0.5)
    assert spec.sparsity_coeff == 12
    with pytest.raises(InvalidArgumentError, match="no use for top_k"):
        recipe_spec("anthropic", dataset="datasets/d", num_features=64, top_k=3)


def test_list_names_every_recipe_and_one_is_shown_with_its_source() -> None:
    """As lines for people and as JSON."""
    lines = CliRunner().invoke(app, ["recipes"]).stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(RECIPES)
    listed = json.loads(CliRunner().invoke(app, ["recipes", "--json"]).stdout)["recipes"]
    assert [entry["name"] for entry in listed] == list(RECIPES)
    shown = CliRunner().invoke(app, ["recipes", "eleutherai"]).stdout
    assert "EleutherAI/clt-training (sparsify) at cf9821f" in shown
    assert json.loads(CliRunner().invoke(app, ["recipes", "eleutherai", "--json"]).stdout) == listed[-1]
    assert listed[-1]["spec"]["learning_rate"] == 2e-4
    assert "num_features" not in listed[-1]["spec"]


def test_unknown_recipe_is_refused() -> None:
    """By every command, with the known ones."""
    for arguments in (["recipes", "nobodys"], ["runs", "create", "r", "--dataset", "d", "--recipe", "nobodys"]):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2
        assert "give one of anthropic" in result.stderr


def test_recipe_and_activation_are_not_given_together() -> None:
    """A recipe has its own."""
    result = CliRunner().invoke(
        app, ["runs", "create", "r", "--dataset", "d", "--recipe", "anthropic", "--activation", "top-k"]
    )
    assert result.exit_code == 2
    assert "--activation and --recipe" in result.stderr


def test_run_file_takes_a_recipe_and_schedules(tmp_path: Path) -> None:
    """The recipe stands beside the spec, whose fields win."""
    found = read_run_file(
        _write(
            tmp_path,
            """
run_id: r
recipe: bytedance
spec:
  dataset: d
  num_features: 64
  top_k: 4
  warmup_steps: 0
  decay_share: 0
  learning_rate_schedule:
    - {until: 0.1, shape: linear, factor: 1}
    - {until: 1, shape: SCHEDULE_SHAPE_COSINE, factor: 0.1}
""",
        )
    ).spec
    assert (found.activation, found.top_k) == (messages_pb2.ACTIVATION_JOINT_TOP_K, 4)
    shapes = [piece.shape for piece in found.learning_rate_schedule]
    assert shapes == [messages_pb2.SCHEDULE_SHAPE_LINEAR, messages_pb2.SCHEDULE_SHAPE_COSINE]
    TrainingConfig.from_spec(spec_from_proto(found))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("recipe: nobodys\nspec: {dataset: d}", "run.yaml:1: recipe: there is no recipe 'nobodys'"),
        ("spec: {dataset: d, sparsity_schedule: linear}", "expected a list of SchedulePiece"),
        ("spec:\n  dataset: d\n  sparsity_schedule:\n  - {until: x}", r"run.yaml:4: spec.sparsity_schedule\[0\].until"),
        ("spec: {dataset: d, sparsity_schedule: [{upto: 1}]}", "there is no such key; .*until"),
        ("spec: {dataset: d, sparsity_schedule: [{shape: step}]}", "expected one of SCHEDULE_SHAPE_CONSTANT"),
    ],
)
def test_mistakes_in_a_run_file_are_told_with_their_place(tmp_path: Path, text: str, says: str) -> None:
    """Line, key and what was expected."""
    with pytest.raises(InvalidArgumentError, match=says):
        read_run_file(_write(tmp_path, text))


def test_schedule_takes_the_place_of_the_chosen_warm_up() -> None:
    """What `training_spec` would choose is left out where a schedule says it."""
    pieces = [messages_pb2.SchedulePiece(until=1, shape=messages_pb2.SCHEDULE_SHAPE_CONSTANT, factor=1)]
    spec = training_spec(
        dataset="datasets/d",
        activation=messages_pb2.ACTIVATION_JUMP_RELU,
        learning_rate_schedule=pieces,
        sparsity_schedule=pieces,
    )
    TrainingConfig.from_spec(spec_from_proto(spec))
    TrainingConfig.from_spec(spec_from_proto(training_spec(dataset="datasets/d", activation=3)))


def test_plan_of_a_recipe_has_its_losses_and_moments() -> None:
    """AuxK takes a second batch; without a first moment there is half the optimiser."""
    plain, eleuther, anthropic = (
        _memory(*arguments) for arguments in ((), ("--recipe", "eleutherai"), ("--recipe", "anthropic"))
    )
    assert eleuther["moments"] * 2 == plain["moments"]
    assert eleuther["entries"] > plain["entries"]
    assert anthropic["activations"] > plain["activations"]


def _memory(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*PLAN, *arguments])
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)["memory_bytes"]
    return found
