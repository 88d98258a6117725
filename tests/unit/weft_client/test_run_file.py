"""A run as a YAML file: what it gives, and how a mistake in it is told."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from weft.training.v1 import messages_pb2
from weft_client.cli import app
from weft_client.run_file import read_run_file
from weft_client.specs import training_spec
from weft_common.errors import InvalidArgumentError, NotFoundError

WHOLE = """\
run_id: llama-1b
spec:
  dataset: pile
  num_features: 65_536
  activation: jump-relu
  learning_rate: 2e-4     # a number, whatever YAML 1.1 says
  gradient_through_threshold: true
  seed: 18446744073709551615
  checkpoint_steps: 0
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def test_run_file_gives_a_complete_spec(tmp_path: Path) -> None:
    """Fields of the file as they are written, the others as the command's own defaults."""
    found = read_run_file(write(tmp_path, WHOLE))
    assert found.run_id == "llama-1b"
    assert found.spec == training_spec(
        dataset="datasets/pile",
        num_features=65_536,
        activation=messages_pb2.ACTIVATION_JUMP_RELU,
        learning_rate=2e-4,
        gradient_through_threshold=True,
        seed=(1 << 64) - 1,
        checkpoint_steps=0,
    )


def test_run_file_takes_every_field_of_the_spec(tmp_path: Path) -> None:
    """Whatever the proto has can be written, under the proto's name."""
    spec = training_spec(
        dataset="datasets/d",
        top_k=3,
        num_features=8,
        scales=messages_pb2.SCALES_TIED,
        moments=messages_pb2.MOMENTS_BFLOAT16,
        parameters=messages_pb2.PARAMETER_TYPE_BFLOAT16,
    )
    lines = []
    for field in spec.DESCRIPTOR.fields:
        value = getattr(spec, field.name)
        lines.append(f"  {field.name}: {field.enum_type.values_by_number[value].name if field.enum_type else value}")
    assert read_run_file(write(tmp_path, "spec:\n" + "\n".join(lines))).spec == spec


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("num_feature: 5", r"run.yaml:4: spec.num_feature: there is no such key; did you mean num_features\?"),
        ("colour: 5", "run.yaml:4: spec.colour: there is no such key; there are dataset, num_features"),
        ("num_steps: many", "run.yaml:4: spec.num_steps: str 'many' was found, expected a whole number"),
        ("num_steps: 5.5", "float '5.5' was found, expected a whole number"),
        ("num_steps: 1:30", "expected a whole number"),
        ("num_features: 3000000000", "expected a whole number from -2147483648 to 2147483647"),
        ("seed: -1", "expected a whole number from 0 to 18446744073709551615"),
        ("learning_rate: fast", "str 'fast' was found, expected a number"),
        ("learning_rate: '1'", "expected a number"),
        ("learning_rate: [1]", "a list was found, expected a number"),
        ("gradient_through_threshold: 1", "expected true or false"),
        ("activation: gelu", "expected one of ACTIVATION_JUMP_RELU, ACTIVATION_TOP_K"),
        ("activation:", "nothing was found, expected one of"),
        ("dataset: e", "run.yaml:4: spec.dataset: the key is there twice"),
        ("top_k: {a: 1}", "a table was found"),
    ],
)
def test_mistake_is_told_with_line_key_and_type(tmp_path: Path, line: str, says: str) -> None:
    """The message has the place, what was found there and what was expected."""
    path = write(tmp_path, f"run_id: r\nspec:\n  dataset: d\n  {line}\n")
    with pytest.raises(InvalidArgumentError, match=says) as caught:
        read_run_file(path)
    assert str(caught.value.field).startswith("spec.")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("- a", "the file: a list was found, expected keys: run_id, spec"),
        ("run_id: r", "has no spec"),
        ("run_id: 5\nspec: {dataset: d}", r"run_id: int '5' was found, expected text \(in quotes"),
        ("spec:\n  top_k: 5", "run.yaml:2: spec has no dataset"),
        ("spec: 5", "run.yaml:1: spec: int '5' was found"),
        ("spec: [", "run.yaml:1: this is no YAML"),
        ("spec: {dataset: d}\n---\nspec: {}", "this is no YAML"),
        ("steps: 5", "there is no such key; .*spec"),
    ],
)
def test_file_of_another_kind_is_told(tmp_path: Path, text: str, says: str) -> None:
    """Whatever the file is, the answer is one sentence about it."""
    with pytest.raises(InvalidArgumentError, match=says):
        read_run_file(write(tmp_path, text))


def test_file_that_is_missing_binary_or_huge_is_told(tmp_path: Path) -> None:
    """No traceback for a wrong path."""
    with pytest.raises(NotFoundError, match="no file"):
        read_run_file(tmp_path / "nope.yaml")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidArgumentError, match="UTF-8"):
        read_run_file(tmp_path / "binary")
    with pytest.raises(InvalidArgumentError, match="a few lines"):
        read_run_file(write(tmp_path, " " * ((1 << 20) + 1)))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-f", "run.yaml", "--top-k", "5"], "write top_k into the file"),
        (["other", "-f", "run.yaml"], "names the run 'llama-1b', the command line 'other'"),
        (["-f", "anonymous.yaml"], "has no run_id"),
        (["r"], "--dataset, or --file"),
    ],
)
def test_command_takes_a_run_from_one_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    """What contradicts the file is refused before anything is sent; exit code 2."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, WHOLE)
    (tmp_path / "anonymous.yaml").write_text("spec: {dataset: d}\n")
    result = CliRunner().invoke(app, ["runs", "create", *arguments])
    assert result.exit_code == 2
    assert says in result.stderr
