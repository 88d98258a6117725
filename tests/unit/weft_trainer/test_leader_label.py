"""The label by which a Service finds the leader's pod, on a cluster in memory."""

import asyncio
from typing import Any

import pytest
from fake_cluster import FakeCluster

from weft_common.errors import PermissionDeniedError, UnavailableError
from weft_trainer.adapters.kubernetes_api import PODS
from weft_trainer.adapters.leader_label import LEADER_LABEL, LeaderLabel

RETRY_S = 0.01


def controllers(*names: str, instance: str = "weft", **labels: str) -> FakeCluster:
    return add(FakeCluster(), *names, instance=instance, **labels)


def add(cluster: FakeCluster, *names: str, instance: str = "weft", **labels: str) -> FakeCluster:
    own = {"app.kubernetes.io/component": "trainer", "app.kubernetes.io/instance": instance, "team": "a"}
    for name in names:
        cluster.create(PODS, {"metadata": {"name": name, "labels": {**own, **labels}}})
    return cluster


def labelled(cluster: FakeCluster) -> set[str]:
    pods, _ = cluster.list(PODS, f"{LEADER_LABEL}=true")
    return {str(pod["metadata"]["name"]) for pod in pods}


async def test_leader_is_labelled_for_as_long_as_it_leads() -> None:
    """Its other labels stay as they are."""
    cluster = controllers("a", "b")
    before = cluster.get(PODS, "a")["metadata"]["labels"]
    label = LeaderLabel(cluster, "a", RETRY_S)
    await label.take_off()
    assert labelled(cluster) == set()
    async with label.worn():
        assert labelled(cluster) == {"a"}
        assert cluster.get(PODS, "a")["metadata"]["labels"] == {**before, LEADER_LABEL: "true"}
    assert cluster.get(PODS, "a")["metadata"]["labels"] == before


async def test_container_that_starts_again_begins_without_the_label() -> None:
    """Its pod still has it from before the container was killed, while another may lead by now."""
    cluster = controllers("a", **{LEADER_LABEL: "true"})
    await LeaderLabel(cluster, "a", RETRY_S).take_off()
    assert labelled(cluster) == set()


async def test_next_leader_takes_the_label_off_a_lost_pod() -> None:
    """A node that is gone leaves its pod labelled; another installation's leader keeps its own."""
    cluster = controllers("lost", "next")
    add(cluster, "other", instance="second-release", **{LEADER_LABEL: "true"})
    await LeaderLabel(cluster, "next", RETRY_S).take_off()
    cluster.label(PODS, "lost", {LEADER_LABEL: "true"})
    label = LeaderLabel(cluster, "next", RETRY_S)
    await label.take_off()
    async with label.worn():
        assert labelled(cluster) == {"next", "other"}


async def test_server_that_is_away_is_waited_for() -> None:
    """Neither the start nor the lead goes on without the label; leaving does, since the next leader sees to it."""
    cluster = controllers("a")
    cluster.fails = UnavailableError("the API server is away")
    label = LeaderLabel(cluster, "a", RETRY_S)
    starting = asyncio.create_task(label.take_off())
    await asyncio.sleep(5 * RETRY_S)
    assert not starting.done()
    cluster.fails = None
    await asyncio.wait_for(starting, 5)
    async with label.worn():
        cluster.fails = UnavailableError("the API server is away")
    cluster.fails = None
    assert labelled(cluster) == {"a"}


async def test_missing_right_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Role without patch on pods ends the start, rather than leave a leader that nobody can reach."""
    cluster = controllers("a")

    def refuse(*arguments: Any) -> None:
        raise PermissionDeniedError("pods is forbidden")

    monkeypatch.setattr(cluster, "label", refuse)
    with pytest.raises(PermissionDeniedError, match="pods is forbidden"):
        await LeaderLabel(cluster, "a", RETRY_S).take_off()
