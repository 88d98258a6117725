"""
The cluster that KUBECONFIG names, as a world of the launchers' contract test; kubectl speaks with it too.

WEFT_TEST_RANK_IMAGE is an image with Python 3.11 that its nodes have or can pull.
"""

import asyncio
import os
import subprocess
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from weft_trainer.adapters.kubernetes_api import PODS
from weft_trainer.adapters.kubernetes_launcher import RankKind, kubernetes_launcher
from weft_trainer.adapters.kubernetes_manifests import CONTAINER, PodOptions
from weft_trainer.core.ports import RankJob, RankLauncher

IMAGE = os.environ.get("WEFT_TEST_RANK_IMAGE", "python:3.11-slim-bookworm")
# Ends with the code that a file holds, as the stand-in of the processes does.
WAITING = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
path = pathlib.Path('/tmp/code')
print('waiting', flush=True)
while not path.exists():
    time.sleep(0.02)
sys.exit(int(path.read_text()))
"""


# What `kubectl exec` ends with when its command is killed.
_KILLED = 137


def need_cluster() -> None:
    """Fail where no cluster is named: these tests run only where somebody asks for them."""
    if not Path(os.environ.get("KUBECONFIG", "")).is_file():
        pytest.fail("KUBECONFIG names no file: give a cluster, these tests run on a real one.")


def kubectl(*arguments: str, accepted: tuple[int, ...] = (0,)) -> str:
    """Run kubectl, which must do what it is asked to, and return what it wrote."""
    done = subprocess.run(["kubectl", *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode in accepted, f"kubectl {' '.join(arguments)}: {done.stderr}"
    return done.stdout


@asynccontextmanager
async def namespace() -> AsyncIterator[str]:
    """A namespace of the test's own that takes restricted pods only."""
    need_cluster()
    name = f"weft-test-{uuid.uuid4().hex[:8]}"
    await asyncio.to_thread(kubectl, "create", "namespace", name)
    try:
        enforce = "pod-security.kubernetes.io/enforce=restricted"
        await asyncio.to_thread(kubectl, "label", "namespace", name, enforce)
        yield name
    finally:
        await asyncio.to_thread(kubectl, "delete", "namespace", name, "--wait=false")


class RealWorld:
    """Pods of a real cluster, two a job."""

    launcher: RankLauncher

    def __init__(self, stack: AsyncExitStack, kind: RankKind, name: str) -> None:
        from weft_trainer.adapters.kubernetes_client import KubernetesClient

        self.namespace = name
        self.api = KubernetesClient(name)
        self._stack = stack
        self.kind = kind

    @classmethod
    @asynccontextmanager
    async def made(cls, kind: RankKind) -> AsyncIterator["RealWorld"]:
        """Make a world in a namespace of its own."""
        async with namespace() as name, AsyncExitStack() as stack:
            yield cls(stack, kind, name)

    def options(self, **changes: Any) -> PodOptions:
        """What pods are like: they run what waits for a file."""
        given = {"image": IMAGE, "image_pull_policy": "IfNotPresent", "command": ("python3", "-c", WAITING)}
        return PodOptions(**{**given, **changes})

    def job(self, key: str = "runs/r/attempts/1") -> RankJob:
        return RankJob(key, "waiting_job", 2, {})

    async def pods(self, *phases: str) -> list[str]:
        """Wait until there are two pods, all in one of these phases; return their names."""
        async with asyncio.timeout(120):
            while True:
                found, _ = await asyncio.to_thread(self.api.list, PODS)
                if len(found) == 2 and all(pod.get("status", {}).get("phase") in phases for pod in found):
                    return [pod["metadata"]["name"] for pod in found]
                await asyncio.sleep(0.2)

    async def end(self, code: int) -> None:
        """Have all ranks end well, or one of them badly, for which the cluster ends the other."""
        for pod in (await self.pods("Running"))[: 1 if code else None]:
            await asyncio.to_thread(self.write, pod, code)

    async def anew(self) -> RankLauncher:
        opened = kubernetes_launcher(self.api, self.options(), "contract", self.kind)
        return await self._stack.enter_async_context(opened)

    def write(self, pod: str, code: int) -> None:
        """End a pod's process; the command inside may be killed with the container that it ends."""
        script = f"import os; open('/tmp/c', 'w').write('{code}'); os.rename('/tmp/c', '/tmp/code')"
        inside = ("exec", "-n", self.namespace, pod, "-c", CONTAINER, "--", "python3", "-c", script)
        kubectl(*inside, accepted=(0, _KILLED))
