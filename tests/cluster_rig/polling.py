"""A pod that asks every service through its Service's address while something happens to the release."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster_rig.kubectl import until
from cluster_rig.release import SERVICES, Release

__all__ = ["Polled", "polled"]

_SCRIPT = Path(__file__).with_name("poll_services.py")
_POD = "poller"


class Polled:
    """
    What the pod has seen.

    Args:
        release: That it asks.
    """

    def __init__(self, release: Release) -> None:
        self._release = release

    def seen(self) -> dict[str, dict[str, Any]]:
        """Return calls, the longest of them in seconds, and failures, by service; waits until the log can be read."""
        # It is empty before the first second, and one call may fail on a busy machine.
        printed: str = until(
            lambda: (found := self._release.kubectl("logs", _POD, "--tail=1", check=False)).startswith("{") and found,
            "the poller's log is read",
            60,
        )
        seen: dict[str, dict[str, Any]] = json.loads(printed)
        return seen

    def settled(self) -> dict[str, dict[str, Any]]:
        """Return what was seen a while after everything is quiet, so that calls in flight have ended too."""
        before = {service: seen["calls"] for service, seen in self.seen().items()}
        time.sleep(3)
        now: dict[str, dict[str, Any]] = until(
            lambda: all((seen := self.seen())[each]["calls"] > before[each] + 2 for each in SERVICES) and seen,
            "every service answers again",
            60,
        )
        return now


@contextmanager
def polled(release: Release) -> Iterator[Polled]:
    """Poll for as long as the context lasts; every service has answered once before it begins."""
    kubectl = release.kubectl
    namespace = kubectl.namespace
    targets = {
        each: f"{release.service(each)}.{namespace}.svc:{8080 if each == 'console' else 50051}" for each in SERVICES
    }
    container = {
        "name": "poller",
        "image": release.image("client"),
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-c", _SCRIPT.read_text()],
        "env": [{"name": "HOME", "value": "/tmp"}, {"name": "WEFT_POLL_TARGETS", "value": json.dumps(targets)}],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "tokens", "mountPath": "/etc/weft/tokens", "readOnly": True},
            {"name": "tls", "mountPath": "/etc/weft/tls", "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }
    tokens = {"secretName": "weft-auth", "defaultMode": 0o440}
    authority = {"secretName": "weft-tls", "defaultMode": 0o440, "items": [{"key": "ca.crt", "path": "ca.crt"}]}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        # The label is what the chart's network policies let in.
        "metadata": {"name": _POD, "labels": {"weft.dev/client": "true"}},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 0,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "runAsGroup": 10001,
                "fsGroup": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": [
                {"name": "tokens", "secret": tokens},
                {"name": "tls", "secret": authority},
                {"name": "tmp", "emptyDir": {}},
            ],
        },
    }
    kubectl.apply(pod)
    try:
        found = Polled(release)
        until(
            lambda: (seen := found.seen()) and all(seen[each]["calls"] > 1 for each in SERVICES),
            "every service answers the poller",
            60,
        )
        yield found
    finally:
        kubectl("delete", "pod", _POD, "--wait=true")
