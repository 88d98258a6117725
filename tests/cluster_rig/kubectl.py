"""kubectl as the tests use it, and ports of the cluster brought to this machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

__all__ = ["Kubectl", "forwarded", "until"]

Json = dict[str, Any]


def until(what: Callable[[], Any], why: str, timeout_s: float = 120, every_s: float = 0.5) -> Any:
    """Wait until something gives a true value, and return it; `why` says what was waited for."""
    deadline = time.monotonic() + timeout_s
    while not (found := what()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s:.0f} s in vain: {why}")
        time.sleep(every_s)
    return found


class Kubectl:
    """
    kubectl in one namespace.

    Args:
        namespace: Where objects are.
    """

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace

    def __call__(self, *arguments: str, given: str | None = None, check: bool = True, timeout_s: float = 180) -> str:
        """Run a command and return what it printed; with `check`, fail with its message where it fails."""
        result = subprocess.run(
            ["kubectl", "--namespace", self.namespace, *arguments],
            input=given,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and result.returncode != 0:
            raise AssertionError(f"kubectl {' '.join(arguments)}: {result.stderr.strip()}")
        return result.stdout if check else result.stdout + result.stderr

    def json(self, *arguments: str) -> Json:
        """Run `get` and return what it found."""
        found: Json = json.loads(self("get", *arguments, "--output=json"))
        return found

    def items(self, kind: str, selector: str = "") -> list[Json]:
        """List objects by their labels."""
        found: list[Json] = self.json(kind, *([f"--selector={selector}"] if selector else []))["items"]
        return found

    def apply(self, *objects: Mapping[str, Any]) -> None:
        """Create or change objects."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self("apply", "--filename=-", given=json.dumps(listed))

    def make_namespace(self, **labels: str) -> None:
        """Make the namespace; one that tests have left that were killed is deleted first, with everything in it."""
        self("delete", "namespace", self.namespace, "--ignore-not-found", "--wait=true", timeout_s=240)
        metadata = {"name": self.namespace, "labels": labels}
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})

    def create_secret(self, name: str, values: Mapping[str, str], kind: str = "Opaque") -> None:
        """Create a Secret."""
        self.apply(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "type": kind,
                "metadata": {"name": name},
                "stringData": dict(values),
            }
        )

    def can(self, account: str, *what: str) -> bool:
        """Ask whether a service account of this namespace may do something."""
        user = f"system:serviceaccount:{self.namespace}:{account}"
        return self("auth", "can-i", f"--as={user}", *what, check=False).strip().endswith("yes")


@contextmanager
def forwarded(kubectl: Kubectl, service: str, port: int) -> Iterator[int]:
    """
    Bring a Service's port to this machine; the forward is started again whenever its pod goes away.

    Args:
        kubectl: In the Service's namespace.
        service: Its name, or `pod/NAME` for one pod.
        port: Of the Service or the pod.

    Yields:
        The port on loopback.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        local = int(probe.getsockname()[1])
    resource = service if "/" in service else f"service/{service}"
    command = ["kubectl", "--namespace", kubectl.namespace, "port-forward", resource, f"{local}:{port}"]
    ended, lock = threading.Event(), threading.Lock()
    running: list[subprocess.Popen[bytes]] = []

    def keep() -> None:
        while True:
            with lock:
                if ended.is_set():
                    return
                process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                running[:] = [process]
            process.wait()
            ended.wait(0.3)

    thread = threading.Thread(target=keep)
    thread.start()
    try:
        until(lambda: _answers(local), f"a forward to {service}", 60)
        yield local
    finally:
        with lock:
            ended.set()
            running[0].terminate()
        thread.join()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def registry() -> str:
    """Return where the cluster has the images from."""
    return os.environ.get("WEFT_IMAGE_REGISTRY", "localhost")
