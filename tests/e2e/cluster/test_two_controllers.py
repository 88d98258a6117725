"""Two controllers: both are ready, one leads, and the next takes over when it goes."""

import time
from collections.abc import Iterator

import pytest
from cluster_rig.kubectl import until
from cluster_rig.polling import polled
from cluster_rig.release import Release

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

LEADER = "weft.dev/leader"


@pytest.fixture(scope="module")
def pair(release: Release) -> Iterator[Release]:
    """The release with two controllers; helm itself waits until both are ready."""
    before = release.values
    release.upgrade(trainer={"replicas": 2})
    yield release
    release.upgrade(trainer={"replicas": before["trainer"].get("replicas", 1)})


def _leaders(release: Release) -> list[str]:
    """Name the controllers that a Service would send calls to."""
    pods = [pod["metadata"] for pod in release.pods("trainer") if "deletionTimestamp" not in pod["metadata"]]
    return [pod["name"] for pod in pods if pod.get("labels", {}).get(LEADER) == "true"]


def test_one_of_two_ready_controllers_leads(pair: Release) -> None:
    """Readiness is of both, the label of one."""
    pods = pair.pods("trainer")
    assert len(pods) == 2
    assert all(status["ready"] for pod in pods for status in pod["status"]["containerStatuses"])
    assert len(_leaders(pair)) == 1


def test_no_call_fails_while_one_controller_hands_over(pair: Release) -> None:
    """The leader is told to go: another has the label, and no caller with the usual retries sees it."""
    (leader,) = _leaders(pair)
    with polled(pair) as poller:
        begun, asked = time.monotonic(), poller.seen()["trainer"]["calls"]
        pair.kubectl("delete", "pod", leader, "--wait=false")
        until(lambda: _leaders(pair) not in ([], [leader]), "another controller leads", 120, 0.2)
        print(f"handed over after {time.monotonic() - begun:.1f} s")  # noqa: T201  shown with -s
        until(lambda: poller.seen()["trainer"]["calls"] > asked + 5, "calls go on", 60)
        seen = poller.settled()["trainer"]
    assert seen["failures"] == []


def test_controller_that_dies_is_followed(pair: Release) -> None:
    """Without a chance to hand over, the next leads once the lease has run out, and answers."""
    until(lambda: len(_leaders(pair)) == 1, "a controller leads", 120, 0.2)
    (leader,) = _leaders(pair)
    begun = time.monotonic()
    pair.kubectl("delete", "pod", leader, "--grace-period=0", "--force", "--wait=false")
    until(lambda: _leaders(pair) not in ([], [leader]), "another controller leads", 120, 0.2)
    print(f"followed after {time.monotonic() - begun:.1f} s")  # noqa: T201  shown with -s
    with polled(pair) as poller:
        assert poller.settled()["trainer"]["failures"] == []
