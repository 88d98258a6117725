"""The file of contexts: read, checked, changed, and who may read it."""

import stat
from pathlib import Path

import pytest

from weft_client.connecting import choose_endpoints
from weft_client.contexts import ContextFile, default_path
from weft_common.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, UnavailableError

TEXT = """
current = "prod"

[contexts.prod]
tls_ca = "ca.pem"
token_env = "SHARED_TOKEN"

[contexts.prod.cache]
target = "cache.example:443"

[contexts.prod.trainer]
target = "trainer.example:443"
token_file = "trainer-token"
tls_server_name = "trainer.internal"

[contexts.test.cache]
target = "127.0.0.1:5"
token = "t"
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of two contexts where it is looked for, and a working folder in which nothing runs."""
    for variable in ("WEFT_ENDPOINTS", "WEFT_CONTEXT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("SHARED_TOKEN", "shared")
    monkeypatch.chdir(tmp_path)
    path = default_path()
    path.parent.mkdir()
    (path.parent / "ca.pem").write_text("PEM")
    (path.parent / "trainer-token").write_text("own\n")
    path.write_text(TEXT)
    path.chmod(0o600)
    return path


def test_context_shares_keys_between_its_services(path: Path) -> None:
    """A service's own token replaces the shared one, whatever its form; files lie beside the contexts."""
    endpoints = ContextFile.read(path).endpoints("prod")
    assert (endpoints["cache"].target, endpoints["cache"].token) == ("cache.example:443", "shared")
    assert (endpoints["trainer"].token, endpoints["trainer"].tls_server_name) == ("own", "trainer.internal")
    assert endpoints["trainer"].tls_ca == path.parent / "ca.pem"
    with pytest.raises(FailedPreconditionError, match="no attribution service, only cache, trainer"):
        endpoints["attribution"]


def test_unknown_context_lists_the_known_ones(path: Path) -> None:
    """The message names what there is."""
    with pytest.raises(NotFoundError, match="only: prod, test"):
        ContextFile.read(path).endpoints("nope")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("contexts = 5", "contexts are tables"),
        ("currant = 'x'", "'currant'"),
        ("[contexts.a.cache]\ntargets = 'x:1'", r"contexts\.a\.cache has a key 'targets', expected target"),
        ("[contexts.a.cash]\ntarget = 'x:1'", "a key 'cash'"),
        ("[contexts]\na = 1", "is no table"),
        ("[contexts.a]\ncache = 'x:1'", r"write \[contexts\.a\.cache\]"),
        ("current = ", "no TOML"),
    ],
)
def test_wrong_file_is_refused_in_words(path: Path, text: str, says: str) -> None:
    """The file, the place and what is expected there."""
    path.write_text(text)
    with pytest.raises(FailedPreconditionError, match=says):
        ContextFile.read(path)


def test_file_that_cannot_be_read_says_which_mode(path: Path) -> None:
    """A folder in its place is an error in words, too."""
    path.unlink()
    path.mkdir()
    with pytest.raises(FailedPreconditionError, match=r"cannot be read .* mode 600"):
        ContextFile.read(path)


@pytest.mark.parametrize(("mode", "bad"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True)])
def test_mode_that_lets_others_read_is_told(path: Path, mode: int, bad: bool) -> None:
    """Only the owner should get at the tokens; the message has the command that mends it."""
    path.chmod(mode)
    problem = ContextFile.read(path).mode_problem()
    assert (f"mode {mode:03o}" in problem and "chmod 600" in problem) is bad
    assert bool(problem) is bad


def test_written_file_reads_as_it_was(path: Path) -> None:
    """Every context, key and odd character comes back; the new file is its owner's alone."""
    odd = {"target": "h:1", "tls_server_name": 'a "b" \\ é \x7f'}
    changed = ContextFile.read(path).with_keys("new", "cache", odd).using("new")
    path.chmod(0o644)
    changed.write()
    assert ContextFile.read(path) == changed
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_new_token_replaces_the_old_one(path: Path) -> None:
    """A service has one way to its token, so a file takes the place of the token itself."""
    changed = ContextFile.read(path).with_keys("test", "cache", {"token_file": "trainer-token", "target": "h:2"})
    cache = changed.endpoints("test")["cache"]
    assert (cache.target, cache.token) == ("h:2", "own")
    assert changed.with_keys("test", "cache", {"token_file": None}).endpoints("test")["cache"].token is None


def test_names_that_are_none_are_refused(path: Path) -> None:
    """Context names become headings, services are five."""
    found = ContextFile.read(path)
    with pytest.raises(InvalidArgumentError, match="letters, digits"):
        found.with_keys("a.b", "cache", {})
    with pytest.raises(InvalidArgumentError, match="cache, activations"):
        found.with_keys("a", "cash", {})


def test_current_context_goes_with_its_context(path: Path) -> None:
    """A context that is deleted is no longer the current one."""
    assert ContextFile.read(path).without("prod").current == ""
    assert ContextFile.read(path).without("test").current == "prod"


def test_choice_goes_from_the_nearest_to_the_farthest(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller, then the environment, then the current context, then an embedded run here."""
    assert choose_endpoints(None, "test")["cache"].port == 5
    assert choose_endpoints(None, None)["cache"].port == 443
    monkeypatch.setenv("WEFT_CONTEXT", "test")
    assert choose_endpoints(None, None)["cache"].port == 5
    assert choose_endpoints(None, "prod")["cache"].port == 443
    monkeypatch.setenv("WEFT_ENDPOINTS", "endpoints.json")
    with pytest.raises(InvalidArgumentError, match="WEFT_ENDPOINTS and WEFT_CONTEXT"):
        choose_endpoints(None, None)
    with pytest.raises(InvalidArgumentError, match="--endpoints and --context"):
        choose_endpoints(Path("x"), "prod")
    monkeypatch.delenv("WEFT_CONTEXT")
    with pytest.raises(NotFoundError, match=r"endpoints\.json"):
        choose_endpoints(None, None)
    monkeypatch.delenv("WEFT_ENDPOINTS")
    ContextFile.read(path).using("").write()
    with pytest.raises(UnavailableError, match="weft up"):
        choose_endpoints(None, None)
