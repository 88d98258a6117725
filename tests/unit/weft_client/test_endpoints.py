"""Where the services are, from the file or as given."""

import json
from pathlib import Path

import pytest

from weft_client.endpoints import Endpoint, Endpoints, find_endpoints, read_endpoints
from weft_common.errors import FailedPreconditionError, NotFoundError, UnavailableError


def write(folder: Path) -> Path:
    path = folder / ".weft" / "endpoints.json"
    path.parent.mkdir()
    services = {
        "cache": {"target": "127.0.0.1:1", "token": "secret-c", "metrics_port": 2, "pid": 3},
        "console": {"target": "127.0.0.1:9", "url": "http://127.0.0.1:9/", "token": "secret-p"},
    }
    path.write_text(json.dumps({"services": services}))
    return path


def test_file_is_found_upwards(tmp_path: Path) -> None:
    """A command run in a folder of the project finds the project's weft."""
    path = write(tmp_path)
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    assert find_endpoints(below) == path


def test_no_file_says_weft_up(tmp_path: Path) -> None:
    """Where nothing runs, the message says what starts it."""
    with pytest.raises(UnavailableError, match="weft up"):
        find_endpoints(tmp_path)


def test_file_gives_targets_tokens_and_page(tmp_path: Path) -> None:
    """Services and the page's address come out; a service that is not there is named."""
    endpoints = read_endpoints(write(tmp_path))
    assert endpoints["cache"] == Endpoint("127.0.0.1:1", "secret-c", metrics_port=2)
    assert endpoints.page("graphs/g1") == "http://127.0.0.1:9/graphs/g1?token=secret-p"
    with pytest.raises(FailedPreconditionError, match="no trainer service"):
        endpoints["trainer"]


def test_secrets_do_not_show(tmp_path: Path) -> None:
    """Tokens stay out of what is printed and logged."""
    assert "secret" not in repr(read_endpoints(write(tmp_path)))


@pytest.mark.parametrize("content", ["", "[]", '{"services": {"cache": {}}}', '{"services": 5}'])
def test_broken_file_says_what_to_do(tmp_path: Path, content: str) -> None:
    """A file that is cut short or of another kind is refused in words."""
    path = tmp_path / "endpoints.json"
    path.write_text(content)
    with pytest.raises(FailedPreconditionError, match="weft up"):
        read_endpoints(path)


def test_named_file_that_is_missing_is_not_found(tmp_path: Path) -> None:
    """`--endpoints` with a wrong path names it."""
    with pytest.raises(NotFoundError, match=r"nope\.json"):
        read_endpoints(tmp_path / "nope.json")


def mounted(folder: Path, **entry: object) -> Path:
    """An endpoints file as a pod mounts it, with one service."""
    (folder / "token").write_text("from-a-secret\n")
    (folder / "ca.crt").write_text("PEM")
    path = folder / "endpoints.json"
    path.write_text(json.dumps({"services": {"cache": {"target": "cache.weft:50051", **entry}}}))
    return path


def test_file_in_a_pod_names_token_and_authority(tmp_path: Path) -> None:
    """Files are found beside the endpoints file; the token's line end is no part of it."""
    cache = read_endpoints(mounted(tmp_path, token_file="token", tls_ca="ca.crt", tls_server_name="cache"))["cache"]
    assert (cache.token, cache.tls_ca, cache.tls_server_name) == ("from-a-secret", tmp_path / "ca.crt", "cache")
    assert cache.channel_arguments["tls_ca"] == tmp_path / "ca.crt"


def test_token_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """token_env names a variable; one that is not set is named."""
    path = mounted(tmp_path, token_env="CACHE_TOKEN")
    monkeypatch.setenv("CACHE_TOKEN", "t")
    assert read_endpoints(path)["cache"].token == "t"
    monkeypatch.delenv("CACHE_TOKEN")
    with pytest.raises(FailedPreconditionError, match="variable CACHE_TOKEN"):
        read_endpoints(path)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"token_file": "missing"}, "cache.token_file: .*missing cannot be read"),
        ({"tls_ca": "missing"}, "cache.tls_ca: .*missing cannot be read"),
        ({"token_file": "token", "token": "t"}, "token and token_file; give one"),
        ({"tls_cert": "ca.crt"}, "both or neither"),
        ({"target": "cache"}, "give host:port"),
        ({"token": 5}, "cache.token is 5"),
        ({"tls": "yes"}, "give true"),
    ],
)
def test_wrong_entry_is_refused_in_words(tmp_path: Path, entry: dict[str, object], says: str) -> None:
    """File, service and key are named, and what is expected."""
    with pytest.raises(FailedPreconditionError, match=says):
        read_endpoints(mounted(tmp_path, **entry))


def test_page_needs_a_console() -> None:
    """`--open` without a console says so."""
    with pytest.raises(FailedPreconditionError, match="no console"):
        Endpoints({}).page("graphs/g")
