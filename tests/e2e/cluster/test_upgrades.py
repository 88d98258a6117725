"""From the chart before to this one, in the middle of work: no call fails that a client's own retries do not cover."""

import threading
from pathlib import Path

import pytest
from cluster_rig.graphs import LongGraph, create_graph, graph_without_times, owners
from cluster_rig.kubectl import forwarded, until
from cluster_rig.polling import polled
from cluster_rig.release import GRPC_SERVICES, SERVICES, Release
from cluster_rig.work import harvest, upload_corpus

from weft_common.client import channel

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

(PREVIOUS,) = (Path(__file__).resolve().parents[2] / "assets" / "charts").glob("*.tgz")


def _pods(release: Release, component: str) -> set[str]:
    """Name a component's pods, less those that were told to go."""
    found = release.pods(component)
    return {pod["metadata"]["name"] for pod in found if "deletionTimestamp" not in pod["metadata"]}


def test_upgrade_in_the_middle_of_a_harvest_and_a_graph_fails_no_call(release: Release, long_graph: LongGraph) -> None:
    """
    Every pod is exchanged for one of the new chart with a changed value. A harvest goes on all the time; the graph is
    begun by a pod that is told to go in the middle of it, and another makes what an undisturbed one is.
    """
    store = release.bucket.store()
    upload_corpus(release, "text")
    release.upgrade(PREVIOUS, logging={"level": "debug"})
    before = {component: _pods(release, component) for component in SERVICES}
    (old,) = before["attribution"]

    harvested: list[int] = []
    harvesting = threading.Thread(
        target=lambda: harvested.append(harvest(release, "upgraded", num_tokens=20000).tokens_committed)
    )
    upgrading = threading.Thread(target=lambda: release.upgrade(logging={"level": "info"}))
    with (
        polled(release) as poller,
        forwarded(release.kubectl, f"pod/{old}", 50051) as port,
        owners(store, "operations/attribution-upgraded") as seen,
    ):
        harvesting.start()
        until(lambda: len(list(store.list("harvests/upgraded/leases/"))) >= 2, "the harvest goes on", 120, 0.2)
        upgrading.start()
        until(lambda: old not in _pods(release, "attribution"), "the pod of attribution is told to go", 180, 0.2)
        name = f"{release.service('attribution')}.{release.kubectl.namespace}.svc"
        with channel(
            f"127.0.0.1:{port}", token=release.tokens["attribution"], tls_ca=release.authority, tls_server_name=name
        ) as connection:
            operation = create_graph(connection, "upgraded", long_graph.spec)
        release.wait("attribution", operation)
        upgrading.join(600)
        harvesting.join(600)
        answered = poller.settled()

    assert harvested == [20000]
    assert len(seen["operations/attribution-upgraded"]) == 2, "one replica began the graph, another made it"
    assert graph_without_times(store, "upgraded") == long_graph.document
    for component in SERVICES:
        assert before[component].isdisjoint(_pods(release, component)), component
    print({service: (answered[service]["calls"], answered[service]["longest_s"]) for service in SERVICES})  # noqa: T201
    assert {service: answered[service]["failures"] for service in SERVICES} == {service: [] for service in SERVICES}
    assert all(answered[service]["calls"] > 50 for service in GRPC_SERVICES)
