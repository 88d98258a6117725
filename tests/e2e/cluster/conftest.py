"""One installation for all tests: MinIO, models in its bucket, and the chart, in namespaces of their own."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium_browser import chromium
from cluster_rig.bucket import ClusterBucket, minio
from cluster_rig.graphs import LongGraph, create_graph, graph_without_times
from cluster_rig.monitors import job_of_targets
from cluster_rig.release import Release, installed
from cluster_rig.story import Story, graph_spec, tell
from prometheus_server import scraping
from tiny_models import make_llama

__all__ = ["chromium"]

ROOT = Path(__file__).resolve().parents[3]

# What two processors hold beside a cluster.
SMALL = {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "4Gi"}}
VALUES = {
    "activations": {"resources": SMALL, "settings": {"lease_s": 5}},
    "cache": {"resources": SMALL, "replicas": 1},
    "trainer": {"resources": SMALL, "ranks": {"resources": SMALL}},
    "attribution": {"resources": SMALL},
    "console": {"resources": SMALL},
    # The poller opens the page from within the cluster.
    "networkPolicy": {"consoleFrom": [{"podSelector": {"matchLabels": {"weft.dev/client": "true"}}}]},
}


@pytest.fixture(scope="session", autouse=True)
def _tools() -> None:
    assert shutil.which("kubectl"), "kubectl must be on the PATH: run `make cluster-test`"
    assert os.environ.get("KUBECONFIG"), "KUBECONFIG names no cluster: run `make cluster-test`"


@pytest.fixture(scope="session")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterBucket]:
    """A bucket in the cluster, with the real model and a tiny one in it."""
    models = Path(os.environ.get("WEFT_TEST_MODELS_DIR", ROOT / ".weft" / "models"))
    real = models / "smollm2-135m-instruct"
    assert (real / "config.json").is_file(), "the real model is missing: run `make model`"
    tiny = tmp_path_factory.mktemp("models") / "tiny"
    make_llama(tiny, max_tokens=300)
    with minio("weft-test-minio") as found:
        for folder in (real, tiny):
            found.upload(folder, f"models/{folder.name}/")
        yield found


@pytest.fixture(scope="session")
def release(bucket: ClusterBucket, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """The chart, installed with TLS and tokens in a namespace that enforces the restricted Pod Security level."""
    with installed("weft", "weft-test", bucket, tmp_path_factory.mktemp("release"), VALUES) as found:
        yield found


@pytest.fixture(scope="session")
def story(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """The whole path, gone once, while a Prometheus of this machine scrapes the pods."""
    folder = tmp_path_factory.mktemp("prometheus")
    targets = folder / "targets.json"
    with scraping(folder, [job_of_targets(targets)]) as prometheus:
        yield tell(release, prometheus, targets)


@pytest.fixture(scope="session")
def long_graph(release: Release, story: Story) -> LongGraph:
    """Made once; what a test makes of the same spec must be equal."""
    spec = graph_spec("The capital of France is Paris, the capital of Italy is Rome, and the capital of Spain is")
    with release.channel("attribution") as channel:
        operation = create_graph(channel, "undisturbed", spec)
    begun = time.monotonic()
    release.wait("attribution", operation)
    print(f"a long graph takes {time.monotonic() - begun:.1f} s")  # noqa: T201  shown with -s
    return LongGraph(spec, graph_without_times(release.bucket.store(), "undisturbed"))
