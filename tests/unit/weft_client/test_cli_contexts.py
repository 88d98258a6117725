"""`weft contexts` and `weft --context`."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from weft_client.cli import app
from weft_client.contexts import ContextFile, default_path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without contexts."""
    for variable in ("WEFT_ENDPOINTS", "WEFT_CONTEXT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weft(*arguments: str, stdin: str | None = None, code: int = 0) -> Any:
    result = CliRunner().invoke(app, list(arguments), input=stdin)
    assert result.exit_code == code, result.stderr
    return result


def made(home: Path) -> None:
    """One context of two services."""
    (home / "token").write_text("secret-1")
    weft("contexts", "set", "prod", "--service", "cache", "--target", "127.0.0.1:1")
    weft("contexts", "set", "prod", "--token-file", "token")
    weft("contexts", "set", "prod", "--service", "trainer", "--target", "t:2", "--token-stdin", stdin="secret-2\n")


def test_context_is_made_key_by_key(home: Path) -> None:
    """Shared keys, a service's own, and a token from stdin; paths become whole."""
    made(home)
    endpoints = ContextFile.read(default_path()).endpoints("prod")
    assert (endpoints["cache"].token, endpoints["trainer"].token) == ("secret-1", "secret-2")
    assert default_path().stat().st_mode & 0o777 == 0o600


def test_tokens_are_never_shown(home: Path) -> None:
    """`get` says where a token is, and nothing prints it."""
    made(home)
    for arguments in (["get", "prod"], ["get", "prod", "--json"], ["list", "--json"], ["list"]):
        result = weft("contexts", *arguments)
        assert "secret" not in result.stdout + result.stderr
    services = json.loads(weft("contexts", "get", "prod", "--json").stdout)["services"]
    assert services["trainer"] == {"target": "t:2", "token": "(in this file)"}
    assert services["cache"]["token_file"] == str(home / "token")


def test_current_context_is_marked_and_dropped(home: Path) -> None:
    """`use` sets it, `use --none` takes it back, `delete` forgets it."""
    made(home)
    weft("contexts", "use", "prod")
    assert json.loads(weft("contexts", "list", "--json").stdout)["current"] == "prod"
    assert weft("contexts", "list").stdout.splitlines()[1].split() == ["*", "prod", "cache,", "trainer"]
    weft("contexts", "use", "--none")
    assert json.loads(weft("contexts", "list", "--json").stdout)["current"] == ""
    weft("contexts", "delete", "prod")
    assert json.loads(weft("contexts", "list", "--json").stdout)["contexts"] == []


def test_unknown_context_lists_the_known_ones(home: Path) -> None:
    """As an option, as a variable and as an argument; exit code 1."""
    made(home)
    for arguments in (["--context", "nope", "runs", "list"], ["contexts", "use", "nope"], ["contexts", "get", "nope"]):
        assert "only: prod" in weft(*arguments, code=1).stderr


def test_open_mode_warns_and_goes_on(home: Path) -> None:
    """One warning on stderr, as JSON for programs; the command still does what it was asked."""
    made(home)
    default_path().chmod(0o644)
    assert "mode 644" in weft("contexts", "list").stderr
    warning = json.loads(weft("contexts", "list", "--json").stderr)["warning"]["message"]
    assert "chmod 600" in warning
    stderr = weft("--context", "prod", "datasets", "list", code=1).stderr
    assert "warning" in stderr.splitlines()[0]


def test_service_that_is_away_names_its_context(home: Path) -> None:
    """Where a context was used, the advice is to look at it, not to start a weft here."""
    made(home)
    stderr = weft("--context", "prod", "datasets", "list", code=1).stderr
    assert "weft contexts get prod" in stderr
    assert "weft up" not in stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["contexts", "set", "p", "--target", "h:1"], "--service"),
        (["contexts", "set", "p", "--token-env", "A", "--token-file", "b"], "one place"),
        (["contexts", "set", "p", "--unset", "colour"], "one of target"),
        (["contexts", "set", "a/b", "--tls"], "letters, digits"),
        (["contexts", "use"], "--none"),
        (["--context", "p", "--endpoints", "e.json", "runs", "list"], "give one"),
    ],
)
def test_arguments_that_make_no_sense_say_what_would(home: Path, arguments: list[str], says: str) -> None:
    """Exit code 2, and nothing is written."""
    assert says in weft(*arguments, code=2).stderr
    assert not default_path().exists()


def test_wrong_entry_is_not_written(home: Path) -> None:
    """A file that is not there is refused when the context is set, not when it is used."""
    made(home)
    before = default_path().read_bytes()
    assert "cannot be read" in weft("contexts", "set", "prod", "--tls-ca", "nope.pem", code=1).stderr
    assert default_path().read_bytes() == before
