"""
What the chart looks up in the cluster that it is installed to, against a stand-in of the API server.

The stand-in knows one namespace with the Secrets that a test gives it; nothing is ever written to it.
"""

import base64
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from chart_rig import CHART, MINIMAL, merged, render, run

pytestmark = pytest.mark.packaging

AUTH = ("activations", "cache", "trainer", "attribution", "console", "reports")
SECRETS = {
    "weft-auth": AUTH,
    "weft-tls": ("tls.crt", "tls.key", "ca.crt"),
    "weft-bucket": ("access-key", "secret-key"),
}


def _discovery() -> dict[str, Any]:
    """Say, as an API server does, that every kind of the chart's objects is known."""
    kinds: dict[str, set[str]] = {"v1": {"Secret"}}
    for document in render(apis=()):
        kinds.setdefault(document["apiVersion"], set()).add(document["kind"])
    answers: dict[str, Any] = {"/version": {"major": "1", "minor": "34", "gitVersion": "v1.34.4"}}
    groups = []
    for version, names in kinds.items():
        resources = [
            {"name": _plural(name), "namespaced": True, "kind": name, "verbs": ["create", "get", "list"]}
            for name in sorted(names)
        ]
        path = "/api/v1" if version == "v1" else f"/apis/{version}"
        answers[path] = {"kind": "APIResourceList", "groupVersion": version, "resources": resources}
        if version != "v1":
            group, _, number = version.partition("/")
            described = {"groupVersion": version, "version": number}
            groups.append({"name": group, "versions": [described], "preferredVersion": described})
    answers["/api"] = {"kind": "APIVersions", "versions": ["v1"]}
    answers["/apis"] = {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    return answers


def _plural(kind: str) -> str:
    return kind.lower().removesuffix("y") + ("ies" if kind.endswith("y") else "s")


def _object(name: str, keys: tuple[str, ...]) -> dict[str, Any]:
    data = {key: base64.b64encode(b"value").decode() for key in keys}
    return {"metadata": {"name": name, "namespace": "interpretability"}, "data": data}


@contextmanager
def api_server(
    secrets: Mapping[str, tuple[str, ...]], config_maps: Mapping[str, tuple[str, ...]] = MappingProxyType({})
) -> Iterator[str]:
    """Answer what helm asks for a lookup; give the server's address."""
    answers = _discovery()
    for kind, objects in (("Secret", secrets), ("ConfigMap", {"kube-root-ca.crt": ("ca.crt",), **config_maps})):
        items = [_object(name, keys) for name, keys in objects.items()]
        found = {"kind": f"{kind}List", "apiVersion": "v1", "metadata": {}, "items": items}
        answers[f"/api/v1/namespaces/interpretability/{kind.lower()}s"] = found

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answers.get(self.path.partition("?")[0])
            body = json.dumps(found or {"kind": "Status", "status": "Failure", "code": 404}).encode()
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Requests are not logged."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def install(address: str, folder: Path, values: Mapping[str, Any] = MINIMAL) -> "tuple[int, str]":
    """Render with lookups, as an install does first; give exit status and message."""
    cluster = {"name": "c", "cluster": {"server": address}}
    context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
    config = {"clusters": [cluster], "contexts": [context], "current-context": "x", "users": [{"name": "u"}]}
    path = folder / "kubeconfig"
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", **config}))
    arguments = ("template", "weft", CHART, "--namespace", "interpretability", "--dry-run=server")
    arguments += ("--disable-openapi-validation",)
    answer = run(*arguments, "--kubeconfig", path, values=values)
    return answer.returncode, answer.stderr


def test_secrets_that_are_there_pass(tmp_path: Path) -> None:
    """With all Secrets and all their keys in the namespace the chart renders."""
    with api_server(SECRETS) as address:
        assert install(address, tmp_path) == (0, "")


@pytest.mark.parametrize(("name", "value"), [("weft-auth", "auth"), ("weft-bucket", "bucket"), ("weft-tls", "tls")])
def test_missing_secret_is_named(name: str, value: str, tmp_path: Path) -> None:
    """A Secret that nobody made is said before anything is installed, and not by pods that never start."""
    with api_server({other: keys for other, keys in SECRETS.items() if other != name}) as address:
        status, message = install(address, tmp_path)
    assert status != 0
    expected = f"{value}.existingSecret names {name}, and there is no such Secret in namespace interpretability"
    assert expected in message


def test_missing_key_is_named(tmp_path: Path) -> None:
    """A Secret without one of its keys is told apart from one that is missing."""
    with api_server({**SECRETS, "weft-auth": AUTH[:-1]}) as address:
        status, message = install(address, tmp_path)
    assert status != 0
    assert "Secret weft-auth, named by auth.existingSecret, has no key reports: add it" in message


@pytest.mark.parametrize("kind", ["Secret", "ConfigMap"])
def test_authority_of_the_bucket_is_looked_for(kind: str, tmp_path: Path) -> None:
    """In the kind of object that the value names, with the key that the value names."""
    value = f"existing{kind}"
    values = merged({"bucket": {"ca": {value: "authority", "key": "root.pem"}}})
    for keys, words in (
        ((), f"bucket.ca.{value} names authority, and there is no such {kind} in namespace interpretability"),
        (("ca.crt",), f"{kind} authority, named by bucket.ca.{value}, has no key root.pem: add it, or name another"),
        (("root.pem",), ""),
    ):
        there = {"authority": keys} if keys else {}
        secrets, config_maps = ({**SECRETS, **there}, {}) if kind == "Secret" else (SECRETS, there)
        with api_server(secrets, config_maps) as address:
            status, message = install(address, tmp_path, values)
        assert (status == 0) == (not words)
        assert words in message


def test_empty_namespace_has_no_secrets(tmp_path: Path) -> None:
    """A namespace without any Secret is no reason to skip the check."""
    with api_server({}) as address:
        status, message = install(address, tmp_path)
    assert status != 0
    assert "there is no such Secret" in message
