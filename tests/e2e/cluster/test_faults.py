"""Ranks, controller, node and bucket fail in the middle of a run; what comes out is what comes out undisturbed."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil
import pytest
from cluster_rig.kubectl import until
from cluster_rig.release import Release
from cluster_rig.work import get_run, harvest, start_run, tensors_of, training_spec, upload_corpus

from weft.training.v1 import messages_pb2 as training
from weft_store import ObjectStore
from weft_store.documents import read_json

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def undisturbed(release: Release) -> dict[str, Any]:
    """The final checkpoint of a run that nothing happened to."""
    upload_corpus(release, "text")
    harvest(release, "faults")
    spec = training_spec("faults")
    begun = time.monotonic()
    operation = start_run(release, "undisturbed", spec)
    until(lambda: get_run(release, "undisturbed").step > 0, "the first step", 120)
    print(f"first step {time.monotonic() - begun:.1f} s after CreateRun")  # noqa: T201  shown with -s
    release.wait("trainer", operation)
    assert get_run(release, "undisturbed").attempt == 1
    return tensors_of(release, "undisturbed", spec.num_steps)


def _ranks(release: Release, run: str) -> list[dict[str, Any]]:
    return release.kubectl.items("pods", f"weft.dev/run={run}")


def _process_of(release: Release, run: str, rank: int) -> psutil.Process:
    """Find a rank's process on this machine, which is the node."""
    for process in psutil.process_iter():
        try:
            environment = process.environ()
        except (psutil.Error, OSError):
            continue
        if environment.get("WEFT_WORKER_RUN") == run and environment.get("JOB_COMPLETION_INDEX") == str(rank):
            return process
    raise AssertionError(f"rank {rank} of {run} is not a process of this machine; the test needs its node")


def kill_a_rank(release: Release, run: str) -> None:
    """SIGKILL."""
    _process_of(release, run, 1).kill()


def delete_rank_0(release: Release, run: str) -> None:
    """As an eviction does."""
    name = next(
        pod["metadata"]["name"]
        for pod in _ranks(release, run)
        if pod["metadata"]["annotations"].get("batch.kubernetes.io/job-completion-index") == "0"
    )
    release.kubectl("delete", "pod", name)


def delete_the_controller(release: Release, run: str) -> None:
    """At once, without a chance to hand over."""
    release.kubectl("delete", "pod", release.pods("trainer")[0]["metadata"]["name"], "--grace-period=0", "--force")


def drain_the_node(release: Release, run: str) -> None:
    """Every pod of the release goes; they come back when the node does."""
    node = release.kubectl.json("nodes")["items"][0]["metadata"]["name"]
    selector = f"app.kubernetes.io/instance={release.name}"
    try:
        release.kubectl(
            "drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force", f"--pod-selector={selector}",
            "--disable-eviction", "--timeout=150s", timeout_s=200,
        )  # fmt: skip
        time.sleep(5)
    finally:
        release.kubectl("uncordon", node)


def stop_the_bucket(release: Release, run: str) -> None:
    """For a minute."""
    release.bucket.stop()
    time.sleep(60)
    release.bucket.start()


def _newest_checkpoint(store: ObjectStore, run: str) -> int:
    keys = [info.key for info in store.list(f"runs/{run}/checkpoints/") if info.key.endswith("/manifest.json")]
    return max(int(key.split("/")[3]) for key in keys)


def _first_step(store: ObjectStore, run: str, attempt: int) -> int:
    """Read it in the name of the attempt's first chunk of metrics; 0 until that is there."""
    prefix = f"runs/{run}/attempts/{attempt}/metrics-"
    return min((int(info.key.removeprefix(prefix).partition(".")[0]) for info in store.list(prefix)), default=0)


def _strike(release: Release, run: str, strike: Callable[[Release, str], None], after_step: int) -> None:
    until(lambda: get_run(release, run).step >= after_step, f"{run} is in the middle", 240, 0.2)
    before = get_run(release, run)
    assert before.state == training.RUN_STATE_RUNNING
    strike(release, run)
    struck = time.monotonic()
    if strike not in (kill_a_rank, delete_rank_0):
        return
    store = release.bucket.store()
    newest = _newest_checkpoint(store, run)
    last = read_json(store, f"runs/{run}/attempts/{before.attempt}/recent.json")[0]["metrics"][-1]["step"]
    until(lambda: get_run(release, run).attempt > before.attempt, "another attempt", 120, 0.2)
    until(lambda: get_run(release, run).step > before.step, "a further step", 180, 0.2)
    print(f"a step further {time.monotonic() - struck:.1f} s after {strike.__name__}")  # noqa: T201  shown with -s
    attempt = get_run(release, run).attempt
    assert attempt == before.attempt + 1
    first: int = until(lambda: _first_step(store, run, attempt), "the attempt's first metrics", 120, 0.2)
    print(f"{last + 1 - first} steps done again")  # noqa: T201  shown with -s
    assert newest < first <= last + 1


@pytest.mark.parametrize(
    "strikes",
    [(kill_a_rank, delete_rank_0, delete_the_controller), (drain_the_node, stop_the_bucket)],
    ids=["ranks-and-controller", "node-and-bucket"],
)
def test_run_ends_the_same_after(
    release: Release,
    undisturbed: dict[str, Any],
    strikes: Sequence[Callable[[Release, str], None]],
    request: pytest.FixtureRequest,
) -> None:
    """
    One after the other, each in the middle of training. Ranks go on from the newest checkpoint that was whole, and the
    final one has the same bytes.
    """
    run = request.node.callspec.id
    spec = training_spec("faults")
    operation = start_run(release, run, spec)
    for number, strike in enumerate(strikes, start=1):
        _strike(release, run, strike, after_step=120 * number)
    release.wait("trainer", operation, 900)
    after = get_run(release, run)
    assert after.state == training.RUN_STATE_SUCCEEDED, after.error_message
    assert tensors_of(release, run, spec.num_steps) == undisturbed
