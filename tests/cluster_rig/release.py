"""weft as the chart installs it, and ways to talk to it from this machine."""

from __future__ import annotations

import secrets
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import trustme
import yaml
from chart_rig import CHART, merged
from chart_rig import helm as helm_4
from cluster_rig.bucket import ClusterBucket
from cluster_rig.kubectl import Kubectl, forwarded, registry, until
from google.longrunning import operations_pb2, operations_pb2_grpc

from weft_common.client import channel

__all__ = ["GRPC_SERVICES", "SERVICES", "Release", "helm", "installed"]

GRPC_SERVICES = ("activations", "cache", "trainer", "attribution")
SERVICES = (*GRPC_SERVICES, "console")
_MESSAGE_BYTES = 64 << 20


def helm(*arguments: str, check: bool = True, timeout_s: float = 600) -> subprocess.CompletedProcess[str]:
    """Run helm; with `check`, fail with its message where it fails."""
    result = subprocess.run([helm_4(), *arguments], capture_output=True, text=True, timeout=timeout_s, check=False)
    if check and result.returncode != 0:
        raise AssertionError(f"helm {' '.join(arguments)}: {result.stdout}{result.stderr}")
    return result


@dataclass
class Release:
    """
    An installed chart.

    Args:
        name: Of the release.
        kubectl: In its namespace.
        bucket: What it keeps its things in.
        tokens: By service.
        authority: PEM file of the authority of its certificates.
        values: What it was installed with.
        ready_s: From `helm install` until all pods were ready.
    """

    name: str
    kubectl: Kubectl
    bucket: ClusterBucket
    tokens: Mapping[str, str]
    authority: Path
    values: dict[str, Any]
    ready_s: float = 0.0
    ports: dict[str, int] = field(default_factory=dict)

    def service(self, component: str) -> str:
        """Name a component's Service and Deployment."""
        return f"{self.name}-{component}"

    def channel(self, component: str) -> grpc.Channel:
        """Open a channel to a service, with TLS and its token."""
        return channel(
            f"127.0.0.1:{self.ports[component]}",
            token=self.tokens[component],
            tls_ca=self.authority,
            tls_server_name=f"{self.service(component)}.{self.kubectl.namespace}.svc",
            max_message_bytes=_MESSAGE_BYTES,
        )

    def wait(self, component: str, operation: operations_pb2.Operation, timeout_s: float = 600) -> Any:
        """Wait for long work to end; it must succeed. A service that is away meanwhile is asked again."""
        deadline = time.monotonic() + timeout_s
        with self.channel(component) as connection:
            stub = operations_pb2_grpc.OperationsStub(connection)
            while not operation.done:
                assert time.monotonic() < deadline, f"{operation.name} takes more than {timeout_s} s"
                request = operations_pb2.WaitOperationRequest(name=operation.name)
                request.timeout.FromSeconds(5)
                try:
                    operation = stub.WaitOperation(request, timeout=15, wait_for_ready=True)
                except grpc.RpcError as error:
                    if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                        raise
                    time.sleep(0.5)
        assert not operation.HasField("error"), operation.error
        return operation

    def upgrade(self, chart: Path = CHART, **changes: Any) -> None:
        """Change values at the top level, or the chart too, and wait until every pod runs with them."""
        self.values = merged(changes, self.values)
        _write_and("upgrade", self, chart)
        for component in SERVICES:
            self.reach(component)

    def reach(self, component: str) -> None:
        """Wait until the forward leads to a pod again: kubectl tells that its pod is gone to whoever comes next."""
        trusted = ssl.create_default_context(cafile=str(self.authority))

        def answers() -> bool:
            try:
                with (
                    socket.create_connection(("127.0.0.1", self.ports[component]), timeout=5) as plain,
                    trusted.wrap_socket(plain, server_hostname="localhost"),
                ):
                    return True
            except OSError:
                return False

        until(answers, f"{component} is reached", 60)

    def image(self, service: str) -> str:
        """Name an image as the chart does."""
        return f"{registry()}/weft-{service}:{yaml.safe_load((CHART / 'Chart.yaml').read_text())['appVersion']}"

    def pods(self, component: str) -> list[dict[str, Any]]:
        """List a component's pods."""
        return self.kubectl.items("pods", f"app.kubernetes.io/component={component}")


def _write_and(verb: str, release: Release, chart: Path = CHART) -> None:
    path = release.authority.parent / "values.yaml"
    path.write_text(yaml.safe_dump(release.values))
    namespace = release.kubectl.namespace
    helm(verb, release.name, str(chart), "--namespace", namespace, "--values", str(path), "--wait", "--timeout", "8m")


def make_secrets(kubectl: Kubectl, bucket: ClusterBucket, name: str, folder: Path) -> tuple[dict[str, str], Path]:
    """Make the Secrets that the chart asks for; return the tokens and the authority's file."""
    tokens = {service: secrets.token_urlsafe(24) for service in (*SERVICES, "reports")}
    authority = trustme.CA()
    names = [f"{name}-{service}" for service in SERVICES]
    certificate = authority.issue_cert(
        "localhost", *names, *(f"{each}.{kubectl.namespace}.svc" for each in names),
        *(f"{each}.{kubectl.namespace}.svc.cluster.local" for each in names),
    )  # fmt: skip
    kubectl.create_secret("weft-auth", tokens)
    kubectl.create_secret("weft-bucket", {"access-key": bucket.access_key, "secret-key": bucket.secret_key})
    kubectl.create_secret(
        "weft-tls",
        {
            "tls.crt": "".join(blob.bytes().decode() for blob in certificate.cert_chain_pems),
            "tls.key": certificate.private_key_pem.bytes().decode(),
            "ca.crt": authority.cert_pem.bytes().decode(),
        },
        "kubernetes.io/tls",
    )
    path = folder / "ca.crt"
    authority.cert_pem.write_to_path(str(path))
    return tokens, path


@contextmanager
def installed(
    name: str, namespace: str, bucket: ClusterBucket, folder: Path, values: Mapping[str, Any]
) -> Iterator[Release]:
    """
    Install the chart in a namespace of its own, which goes with everything in it at the end.

    Nobody waits for that: whoever makes the namespace anew does.
    """
    kubectl = Kubectl(namespace)
    restricted = dict.fromkeys(("pod-security.kubernetes.io/enforce", "pod-security.kubernetes.io/warn"), "restricted")
    kubectl.make_namespace(**restricted)
    try:
        tokens, authority = make_secrets(kubectl, bucket, name, folder)
        base = {
            "image": {"registry": registry()},
            "auth": {"existingSecret": "weft-auth"},
            "tls": {"existingSecret": "weft-tls"},
            "bucket": {"url": bucket.url, "existingSecret": "weft-bucket"},
            "models": {"bucketPrefix": "models/"},
        }
        release = Release(name, kubectl, bucket, tokens, authority, merged(values, base))
        begun = time.monotonic()
        _write_and("install", release)
        release.ready_s = time.monotonic() - begun
        with ExitStack() as stack:
            for component in SERVICES:
                port = 8080 if component == "console" else 50051
                release.ports[component] = stack.enter_context(forwarded(kubectl, release.service(component), port))
            yield release
    finally:
        kubectl("delete", "namespace", namespace, "--wait=false")
