"""Commands fail in one line, with a code, and never with a traceback."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from weft_client.cli import app
from weft_client.cli.failures import exit_code
from weft_common.errors import InvalidArgumentError, NotFoundError, ShapeError, UnavailableError

NOUNS = ("models", "harvests", "datasets", "runs", "transcoders", "graphs")


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which no weft runs."""
    monkeypatch.chdir(tmp_path)
    for variable in ("WEFT_ENDPOINTS", "WEFT_CONTEXT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


@pytest.mark.parametrize("noun", NOUNS)
def test_every_noun_says_weft_up_where_nothing_runs(nowhere: Path, noun: str) -> None:
    """One line on stderr, nothing on stdout, exit code 1."""
    result = CliRunner().invoke(app, [noun, "list"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1
    assert "weft up" in result.stderr


@pytest.mark.parametrize("noun", NOUNS)
def test_every_noun_gives_errors_as_json(nowhere: Path, noun: str) -> None:
    """With --json the error is one JSON object on stderr."""
    result = CliRunner().invoke(app, [noun, "get", "x", "--json"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert json.loads(result.stderr)["error"]["code"] == "UNAVAILABLE"


@pytest.mark.parametrize(
    "arguments",
    [
        ["nope"],
        ["models", "nope"],
        ["models", "get"],
        ["graphs", "create", "--prompt", "x"],
        ["runs", "list", "--nope"],
        ["runs", "create", "r", "--dataset", "d", "--num-steps", "many"],
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_bad_usage_exits_with_2(nowhere: Path, arguments: list[str], as_json: bool) -> None:
    """Unknown commands and options, missing and malformed arguments."""
    result = CliRunner().invoke(app, [*arguments, *(["--json"] if as_json else [])])
    assert (result.exit_code, result.stdout) == (2, "")
    if as_json:
        assert json.loads(result.stderr)["error"]["code"] == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["graphs", "intervene", "g"], "--ablate"),
        (["graphs", "intervene", "g", "--scale", "1_2_3"], "NODE=NUMBER"),
        (["harvests", "create", "h", "--model", "m"], "--corpus"),
        (["runs", "create", "r", "--dataset", "d", "--activation", "gelu"], "top-k"),
    ],
)
def test_arguments_that_make_no_sense_say_what_would(nowhere: Path, arguments: list[str], says: str) -> None:
    """Checked before anything is sent; exit code 2."""
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert says in result.stderr


def test_endpoints_file_comes_from_the_environment(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """WEFT_ENDPOINTS names the file; one that is missing is named."""
    monkeypatch.setenv("WEFT_ENDPOINTS", str(nowhere / "other.json"))
    result = CliRunner().invoke(app, ["models", "list"])
    assert result.exit_code == 1
    assert "other.json" in result.stderr


def test_exit_code_follows_the_class() -> None:
    """2 for a wrong request, 1 for everything else."""
    errors = (InvalidArgumentError("x"), ShapeError("x"), NotFoundError("x"), UnavailableError("x"))
    assert [exit_code(error) for error in errors] == [2, 2, 1, 1]
