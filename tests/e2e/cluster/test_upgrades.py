"""From the chart before to this one, in the middle of work: no call fails that a client's own retries do not cover."""

import threading
from pathlib import Path

import pytest
from cluster_rig.graphs import LongGraph, create_graph, graph_without_times, made_anew, owners
from cluster_rig.kubectl import until
from cluster_rig.polling import polled
from cluster_rig.release import GRPC_SERVICES, SERVICES, Release
from cluster_rig.work import harvest, upload_corpus

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

# So many wait or are made at a time; the others are asked for until two pods have been seen to make some.
AT_ONCE = 5
UPGRADED = tuple(f"upgraded-{number}" for number in range(1, 21))
(PREVIOUS,) = (Path(__file__).resolve().parents[2] / "assets" / "charts").glob("*.tgz")


def _pods(release: Release, component: str) -> set[str]:
    """Name a component's pods, less those that were told to go."""
    found = release.pods(component)
    return {pod["metadata"]["name"] for pod in found if "deletionTimestamp" not in pod["metadata"]}


def test_upgrade_in_the_middle_of_a_harvest_and_a_graph_fails_no_call(release: Release, long_graph: LongGraph) -> None:
    """
    Every pod is exchanged for one of the new chart with a changed value. A harvest goes on all the time; of the graphs
    that a pod makes when it is told to go, another makes what it leaves, and all are what an undisturbed one is.
    """
    store = release.bucket.store()
    upload_corpus(release, "text")
    release.upgrade(PREVIOUS, logging={"level": "debug"})
    before = {component: _pods(release, component) for component in SERVICES}

    harvested: list[int] = []
    harvesting = threading.Thread(
        target=lambda: harvested.append(harvest(release, "upgraded", num_tokens=20000).tokens_committed)
    )
    upgrading = threading.Thread(target=lambda: release.upgrade(logging={"level": "info"}))
    with (
        polled(release) as poller,
        owners(store, *(f"operations/attribution-{graph_id}" for graph_id in UPGRADED)) as seen,
    ):
        harvesting.start()
        until(lambda: len(list(store.list("harvests/upgraded/leases/"))) >= 2, "the harvest goes on", 120, 0.2)

        def makers() -> set[str]:
            return {owner for owners_of_one in seen.values() for owner in owners_of_one}

        # The old pod is told to go once the new one is ready, however long that takes: there is work until then.
        with release.channel("attribution") as connection:
            operations = [
                create_graph(connection, graph_id, made_anew(long_graph.spec, number))
                for number, graph_id in enumerate(UPGRADED[:AT_ONCE])
            ]
            upgrading.start()
            num_done = 0
            while num_done < len(operations):
                release.wait("attribution", operations[num_done])
                num_done += 1
                number = len(operations)
                if number < len(UPGRADED) and len(makers()) < 2:
                    anew = made_anew(long_graph.spec, number)
                    operations.append(create_graph(connection, UPGRADED[number], anew))
        upgrading.join(600)
        harvesting.join(600)
        answered = poller.settled()

    assert harvested == [20000]
    print("graphs were made by", list(seen.values()))  # noqa: T201  shown with -s
    assert len(makers()) > 1
    made = [graph_without_times(store, graph_id) for graph_id in UPGRADED[: len(operations)]]
    assert made == [long_graph.document] * len(operations)
    for component in SERVICES:
        assert before[component].isdisjoint(_pods(release, component)), component
    print({service: (answered[service]["calls"], answered[service]["longest_s"]) for service in SERVICES})  # noqa: T201
    assert {service: answered[service]["failures"] for service in SERVICES} == {service: [] for service in SERVICES}
    assert all(answered[service]["calls"] > 50 for service in GRPC_SERVICES)
