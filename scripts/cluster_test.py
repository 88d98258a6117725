"""
Run the cluster's tests: find a Kubernetes, bring the images in, run tests/e2e/cluster, and leave nothing behind.

    python scripts/cluster_test.py [ARGUMENTS OF PYTEST]

Which cluster, in this order:
    the one that KUBECONFIG names      its nodes pull the images from WEFT_IMAGE_REGISTRY, where they must be
    a kind cluster, made here          where docker and kind are on the PATH
    the one-node cluster beside this   ../shared/cluster (or WEFT_CLUSTER_SCRIPTS), where its scripts are
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SERVICES = ("activations", "cache", "trainer", "attribution", "console", "client")
KIND_CLUSTER = "weft-test"


@dataclass(frozen=True)
class Cluster:
    """
    A cluster that answers.

    Args:
        environment: What kubectl and helm need to reach it.
        registry: Where its nodes have the images from.
    """

    environment: Mapping[str, str]
    registry: str = "localhost"
    load: Sequence[str] = field(default=())
    """Command that brings an image in, the image's name appended; empty where the nodes pull."""


@contextmanager
def find_cluster() -> Iterator[Cluster]:
    """Yield a cluster; one that was started here is stopped again, whatever happens."""
    scripts = Path(os.environ.get("WEFT_CLUSTER_SCRIPTS", ROOT.parent / "shared" / "cluster"))
    if os.environ.get("KUBECONFIG"):
        registry = os.environ.get("WEFT_IMAGE_REGISTRY", "")
        if not registry:
            sys.exit(
                "cluster-test: KUBECONFIG names a cluster, whose nodes must pull the images: build them with "
                "`make images IMAGES_FLAGS='--registry REGISTRY'`, push them, and set WEFT_IMAGE_REGISTRY=REGISTRY."
            )
        yield Cluster(os.environ, registry)
    elif shutil.which("docker") and shutil.which("kind"):
        yield from _kind()
    elif (scripts / "up").is_file():
        yield from _one_node(scripts)
    else:
        sys.exit(
            "cluster-test: there is no cluster. Set KUBECONFIG to one, or install docker and kind, or give the scripts "
            f"of a one-node cluster: WEFT_CLUSTER_SCRIPTS, now {scripts}."
        )


def _kind() -> Iterator[Cluster]:
    kubeconfig = ROOT / ".weft" / "kind.kubeconfig"
    environment = {**os.environ, "KUBECONFIG": str(kubeconfig)}
    run("kind", "create", "cluster", "--name", KIND_CLUSTER, "--kubeconfig", str(kubeconfig), "--wait", "120s")
    try:
        yield Cluster(environment, load=("kind", "load", "docker-image", "--name", KIND_CLUSTER))
    finally:
        run("kind", "delete", "cluster", "--name", KIND_CLUSTER, "--kubeconfig", str(kubeconfig))


def _one_node(scripts: Path) -> Iterator[Cluster]:
    run(scripts / "build")
    was_up = subprocess.run([scripts / "status"], check=False, capture_output=True).returncode == 0
    try:
        run(scripts / "up")
        run(scripts / "base-image")
        printed = subprocess.run(
            ["bash", "-c", f". '{scripts}/env' && env -0"], check=True, capture_output=True, text=True
        ).stdout
        environment = dict(line.split("=", 1) for line in printed.split("\0") if "=" in line)
        # A test that was killed may have left the node as one that takes no pods.
        run("kubectl", "uncordon", "--selector=kubernetes.io/os=linux", environment=environment)
        yield Cluster(environment, load=(str(scripts / "load"),))
    finally:
        if not was_up:
            run(scripts / "down")


def run(*command: str | Path, environment: Mapping[str, str] | None = None) -> None:
    """Run a command and stop with its exit status where it fails."""
    result = subprocess.run([str(part) for part in command], cwd=ROOT, env=environment, check=False)
    if result.returncode != 0:
        sys.exit(f"cluster-test: `{' '.join(map(str, command))}` failed; its message stands above.")


def main() -> None:
    with find_cluster() as cluster:
        tag = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
        names = [f"{cluster.registry}/weft-{service}:{tag}" for service in SERVICES]
        environment = {
            **cluster.environment,
            "WEFT_IMAGE_REGISTRY": cluster.registry,
            # What the launchers' contract runs in place of ranks: any image with Python.
            "WEFT_TEST_RANK_IMAGE": names[-1],
        }
        if cluster.load:
            run(sys.executable, "scripts/images.py", "--variant", "cpu", environment=environment)
            # Each packs and unpacks a gigabyte on one core.
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(lambda name: run(*cluster.load, name, environment=environment), names))
        arguments = sys.argv[1:] or ["tests/e2e/cluster", "tests/contract", "tests/packaging"]
        tests = [sys.executable, "-m", "pytest", "-q", "-m", "cluster", *arguments]
        status = subprocess.run(tests, cwd=ROOT, env=environment, check=False).returncode
    sys.exit(status)


if __name__ == "__main__":
    main()
