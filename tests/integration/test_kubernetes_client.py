"""The `kubernetes` package against a server that speaks HTTP: addresses, parameters, answers, errors."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from weft_common.errors import (
    AlreadyExistsError,
    ConflictError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)
from weft_trainer.adapters.kubernetes_api import JOBS, JOBSETS, LEASES, PODS, SERVICES, Resource, WatchExpiredError
from weft_trainer.adapters.kubernetes_client import KubernetesClient
from weft_trainer.adapters.kubernetes_manifests import service_manifest


class ApiServer:
    """Answers what the test says, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, list[str]], Any]] = []
        self.content_types: list[str | None] = []
        self.status = 200
        self.answer: Any = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                url = urlsplit(self.path)
                body = json.loads(self.rfile.read(length) or b"null")
                outer.asked.append((self.command, url.path, parse_qs(url.query), body))
                outer.content_types.append(self.headers.get("Content-Type"))
                lines = outer.answer if isinstance(outer.answer, list) else [outer.answer]
                texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
                data = "\n".join(texts).encode()
                self.send_response(outer.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

            def log_message(self, format: str, *arguments: Any) -> None: ...  # noqa: A002

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def says(self, status: int, **document: Any) -> None:
        self.status, self.answer = status, {"kind": "Status", **document}


@pytest.fixture
def server() -> Iterator[ApiServer]:
    made = ApiServer()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def api(server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KubernetesClient:
    """A client of the server, by a kubeconfig."""
    address = f"http://127.0.0.1:{server.server.server_address[1]}"
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": address}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    }
    (tmp_path / "config").write_text(yaml.safe_dump(document))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "config"))
    return KubernetesClient("ml")


@pytest.mark.parametrize(
    ("resource", "path"),
    [
        (JOBS, "/apis/batch/v1/namespaces/ml/jobs"),
        (JOBSETS, "/apis/jobset.x-k8s.io/v1alpha2/namespaces/ml/jobsets"),
        (LEASES, "/apis/coordination.k8s.io/v1/namespaces/ml/leases"),
        (SERVICES, "/api/v1/namespaces/ml/services"),
    ],
)
def test_objects_are_sent_and_returned_as_they_are(
    resource: Resource, path: str, server: ApiServer, api: KubernetesClient
) -> None:
    """Addresses are those of the group; nothing is added to a document or lost from it."""
    owner = {"metadata": {"name": "a", "uid": "u", "labels": {"x": "y"}}}
    manifest = service_manifest(owner) if resource is SERVICES else {"spec": {"fieldOfTomorrow": {"x": 1}}}
    server.answer = {"metadata": {"name": "a", "uid": "u"}, "fieldOfTomorrow": [1]}
    assert api.create(resource, manifest) == server.answer
    assert api.create(resource, manifest, dry_run=True) == server.answer
    assert api.get(resource, "a") == server.answer
    assert api.replace(resource, "a", manifest) == server.answer
    api.delete(resource, "a", grace_s=7)
    assert [(verb, where) for verb, where, _, _ in server.asked] == [
        ("POST", path),
        ("POST", path),
        ("GET", f"{path}/a"),
        ("PUT", f"{path}/a"),
        ("DELETE", f"{path}/a"),
    ]
    assert server.asked[0][2:] == ({}, manifest)
    assert server.asked[1][2] == {"dryRun": ["All"]}
    assert server.asked[3][3] == manifest
    assert server.asked[4][2] == {"gracePeriodSeconds": ["7"], "propagationPolicy": ["Foreground"]}


@pytest.mark.parametrize(
    ("resource", "path"), [(PODS, "/api/v1/namespaces/ml/pods/a"), (JOBS, "/apis/batch/v1/namespaces/ml/jobs/a")]
)
def test_labels_are_merged_into_an_object(
    resource: Resource, path: str, server: ApiServer, api: KubernetesClient
) -> None:
    """By a merge patch, of which null takes a label off; everything else of the object stays."""
    server.answer = {"metadata": {"name": "a", "labels": {"x": "y"}}}
    assert api.label(resource, "a", {"x": "y", "z": None}) == server.answer
    assert server.asked == [("PATCH", path, {}, {"metadata": {"labels": {"x": "y", "z": None}}})]
    assert server.content_types == ["application/merge-patch+json"]


def test_list_gives_the_items_and_their_version(server: ApiServer, api: KubernetesClient) -> None:
    """The selector goes along."""
    server.answer = {"metadata": {"resourceVersion": "12"}, "items": [{"metadata": {"name": "a"}}]}
    assert api.list(PODS, "a=b") == ([{"metadata": {"name": "a"}}], "12")
    assert server.asked[0][1:3] == ("/api/v1/namespaces/ml/pods", {"labelSelector": ["a=b"]})


@pytest.mark.parametrize("resource", [PODS, JOBSETS])
def test_watch_gives_events_until_the_server_ends_it(
    resource: Resource, server: ApiServer, api: KubernetesClient
) -> None:
    """One document a line, from the version on."""
    item = {"metadata": {"name": "a", "resourceVersion": "13"}}
    server.answer = [{"type": "ADDED", "object": item}, {"type": "BOOKMARK", "object": item}]
    assert list(api.watch(resource, "a=b", "12", 9)) == [("ADDED", item), ("BOOKMARK", item)]
    asked = server.asked[0][2]
    assert (asked["resourceVersion"], asked["timeoutSeconds"], asked["watch"]) == (["12"], ["9"], ["true"])


@pytest.mark.parametrize("as_event", [True, False])
def test_watch_of_a_forgotten_version_says_so(as_event: bool, server: ApiServer, api: KubernetesClient) -> None:
    """410 comes as the answer or as an event."""
    gone = {"kind": "Status", "code": 410, "message": "too old resource version"}
    server.status, server.answer = (200, [{"type": "ERROR", "object": gone}]) if as_event else (410, gone)
    with pytest.raises(WatchExpiredError, match="too old"):
        list(api.watch(PODS, "", "1", 1))


def test_log_is_text(server: ApiServer, api: KubernetesClient) -> None:
    """The last lines of it."""
    server.answer = "step 1\nstep 2"
    assert api.log("p", 5) == "step 1\nstep 2"
    assert server.asked[0][1:3] == ("/api/v1/namespaces/ml/pods/p/log", {"tailLines": ["5"]})


def test_discovery_tells_what_is_served(server: ApiServer, api: KubernetesClient) -> None:
    """A group that is not there is one that is not served; so is a group without the kind."""
    server.answer = {"resources": [{"name": "jobsets"}, {"name": "jobsets/status"}]}
    assert api.serves(JOBSETS)
    server.answer = {"resources": [{"name": "others"}]}
    assert not api.serves(JOBSETS)
    server.says(404, message="not found")
    assert not api.serves(JOBSETS)


def test_delete_of_what_is_not_there_is_done(server: ApiServer, api: KubernetesClient) -> None:
    """404 is success."""
    server.says(404, message="not found")
    api.delete(PODS, "a")


@pytest.mark.parametrize(
    ("status", "document", "error"),
    [
        (400, {"message": "bad"}, InvalidArgumentError),
        (401, {"message": "who"}, UnauthenticatedError),
        (403, {"message": "jobs is forbidden"}, PermissionDeniedError),
        (403, {"message": "jobs is forbidden: exceeded quota: gpus"}, ResourceExhaustedError),
        (404, {"message": "no such job"}, NotFoundError),
        (409, {"message": "there", "reason": "AlreadyExists"}, AlreadyExistsError),
        (409, {"message": "changed", "reason": "Conflict"}, ConflictError),
        (422, {"message": "spec.completions: Invalid value"}, InvalidArgumentError),
        (429, {"message": "slower"}, UnavailableError),
        (500, {"message": "etcd"}, UnavailableError),
        (503, {}, UnavailableError),
    ],
)
def test_errors_have_their_class_and_the_servers_words(
    status: int, document: dict[str, str], error: type[Exception], server: ApiServer, api: KubernetesClient
) -> None:
    """A quota can free up, a missing right cannot; both are 403."""
    server.says(status, **document)
    with pytest.raises(error, match=document.get("message", f"status {status}")):
        api.create(JOBS, {"metadata": {"name": "a"}})


def test_server_that_is_away_is_unavailable(server: ApiServer, api: KubernetesClient) -> None:
    """Nobody listens."""
    server.server.shutdown()
    server.server.server_close()
    with pytest.raises(UnavailableError, match="does not answer"):
        api.get(JOBS, "a")


def test_no_cluster_at_all_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a service account nor a kubeconfig."""
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    with pytest.raises(FailedPreconditionError, match="set KUBECONFIG"):
        KubernetesClient("ml")
