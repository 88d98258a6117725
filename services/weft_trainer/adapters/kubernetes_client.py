"""The `kubernetes` package as the cluster; answers are taken raw, so that documents stay what the server sent."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import urllib3
from kubernetes import client, config

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
    WeftError,
)
from weft_trainer.adapters.kubernetes_api import Manifest, Resource, WatchExpiredError

__all__ = ["KubernetesClient"]

_CONNECT_S = 5.0
_ANSWER_S = 30.0
# A server ends a watch by itself; this only ends one whose server is gone.
_WATCH_MARGIN_S = 15.0


def _load_configuration() -> Any:
    """Read the service account of this pod, or else the kubeconfig. FailedPreconditionError where there is neither."""
    configuration = client.Configuration()
    try:
        config.load_incluster_config(client_configuration=configuration)
    except config.ConfigException:
        try:
            config.load_kube_config(client_configuration=configuration)
        except config.ConfigException as error:
            raise FailedPreconditionError(
                f"no cluster is known ({error}): run in a pod that has a service account, or set KUBECONFIG."
            ) from None
    return configuration


class KubernetesClient:
    """
    A namespace of the cluster that this process is told of.

    Args:
        namespace: Where everything happens.
    """

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        api_client = client.ApiClient(_load_configuration())
        self._core = client.CoreV1Api(api_client)
        self._grouped = client.CustomObjectsApi(api_client)

    def serves(self, resource: Resource) -> bool:
        try:
            found = _call(self._grouped.get_api_resources, resource.group, resource.version)
        except NotFoundError:
            return False
        return any(each["name"] == resource.plural for each in found["resources"])

    def create(self, resource: Resource, manifest: Manifest, *, dry_run: bool = False) -> Manifest:
        options = {"dry_run": "All"} if dry_run else {}
        return _call(self._method("create", resource), body=manifest, **options)

    def get(self, resource: Resource, name: str) -> Manifest:
        return _call(self._method("get", resource), name=name)

    def replace(self, resource: Resource, name: str, manifest: Manifest) -> Manifest:
        return _call(self._method("replace", resource), name=name, body=manifest)

    def label(self, resource: Resource, name: str, labels: Mapping[str, str | None]) -> Manifest:
        merged = {"metadata": {"labels": dict(labels)}}
        return _call(
            self._method("patch", resource), name=name, body=merged, _content_type="application/merge-patch+json"
        )

    def delete(self, resource: Resource, name: str, *, grace_s: int | None = None) -> None:
        options: dict[str, Any] = {} if grace_s is None else {"grace_period_seconds": grace_s}
        try:
            _call(self._method("delete", resource), name=name, propagation_policy="Foreground", **options)
        except NotFoundError:
            return

    def list(self, resource: Resource, selector: str = "") -> tuple[list[Manifest], str]:
        found = _call(self._method("list", resource), label_selector=selector)
        return found["items"], found["metadata"]["resourceVersion"]

    def watch(self, resource: Resource, selector: str, version: str, timeout_s: int) -> Iterator[tuple[str, Manifest]]:
        response = _send(
            self._method("list", resource),
            {
                "label_selector": selector,
                "resource_version": version,
                "timeout_seconds": timeout_s,
                "allow_watch_bookmarks": True,
                "watch": True,
                "_request_timeout": (_CONNECT_S, timeout_s + _WATCH_MARGIN_S),
            },
        )
        try:
            for line in _lines(response):
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise _error(int(event["object"].get("code") or 500), event["object"])
                yield event["type"], event["object"]
        except urllib3.exceptions.HTTPError as error:
            raise _away(error) from None
        finally:
            response.release_conn()

    def log(self, pod: str, tail_lines: int) -> str:
        arguments = {"name": pod, "namespace": self._namespace, "tail_lines": tail_lines}
        response = _send(self._core.read_namespaced_pod_log, arguments)
        try:
            return bytes(response.data).decode(errors="replace")
        except urllib3.exceptions.HTTPError as error:
            raise _away(error) from None

    def _method(self, verb: str, resource: Resource) -> Callable[..., Any]:
        if resource.group:
            method = getattr(self._grouped, f"{verb}_namespaced_custom_object")
            where = (resource.group, resource.version, self._namespace, resource.plural)
            return lambda **arguments: method(*where, **arguments)
        method = getattr(self._core, f"{'read' if verb == 'get' else verb}_namespaced_{resource.kind.lower()}")
        return lambda **arguments: method(namespace=self._namespace, **arguments)


def _send(method: Callable[..., Any], arguments: Mapping[str, Any], *places: str) -> Any:
    """Call and return the raw answer of a call that succeeded."""
    try:
        response = method(*places, **{"_request_timeout": (_CONNECT_S, _ANSWER_S), **arguments}, _preload_content=False)
    except client.ApiException as error:
        raise _error(int(error.status or 500), _document(error.body)) from None
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise _away(error) from None
    # The client raises for some answers and hands others over, by its version.
    if not 200 <= response.status < 300:
        raise _error(int(response.status), _document(response.data))
    return response


def _call(method: Callable[..., Any], *places: str, **arguments: Any) -> Manifest:
    response = _send(method, arguments, *places)
    try:
        return _document(response.data)
    except urllib3.exceptions.HTTPError as error:
        raise _away(error) from None


def _document(data: bytes | str | None) -> Manifest:
    try:
        found = json.loads(data or b"{}")
    except ValueError:
        found = {}
    return found if isinstance(found, dict) else {}


def _lines(response: Any) -> Iterator[bytes]:
    rest = b""
    for chunk in response.stream(decode_content=True):
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line for line in whole if line.strip())
    if rest.strip():
        yield rest


def _away(error: Exception) -> UnavailableError:
    return UnavailableError(f"the Kubernetes API server does not answer: {error}")


def _error(status: int, document: Manifest) -> WeftError | WatchExpiredError:
    """Return what an answer of the API server means here."""
    said = str(document.get("message") or f"status {status}")
    message = f"the Kubernetes API server says: {said}"
    if status == 410:
        return WatchExpiredError(message)
    if status == 409:
        return (AlreadyExistsError if document.get("reason") == "AlreadyExists" else ConflictError)(message)
    if status == 403 and "exceeded quota" in said:
        return ResourceExhaustedError(f"{message}. Free some of the namespace's quota, or have it raised.")
    if status == 403:
        return PermissionDeniedError(f"{message}. Look at the Role of the trainer's service account.")
    by_status: dict[int, type[WeftError]] = {
        400: InvalidArgumentError,
        401: UnauthenticatedError,
        404: NotFoundError,
        405: NotFoundError,
        422: InvalidArgumentError,
    }
    return by_status.get(status, UnavailableError)(message)
