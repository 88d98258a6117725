"""More replicas give the same results, and share the work."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import pytest
from cluster_rig.graphs import LongGraph, create_graph, graph_without_times, made_anew, owners
from cluster_rig.release import Release
from cluster_rig.work import harvest, upload_corpus

from weft.attribution.v1 import messages_pb2 as attribution
from weft_store.documents import read_json
from weft_store.shard import ShardReader

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

# So many that other replicas have loaded the model before all are read.
NUM_TOKENS = 20000
# So many that a replica that is slow to look finds one that nobody has begun.
NUM_GRAPHS = 4


@dataclass
class Results:
    """A harvest's shards by the number of replicas; graphs that two replicas made, and which of them made each."""

    shards: dict[int, dict[int, str]] = field(default_factory=dict)
    graphs: list[dict[str, Any]] = field(default_factory=list)
    graph_owners: list[list[str]] = field(default_factory=list)


def _shards(release: Release, dataset: str) -> dict[int, str]:
    """Digest the values of a dataset's shards, by index."""
    store = release.bucket.store()
    found = {}
    for item in store.list(f"datasets/{dataset}/shards/"):
        name = item.key.rpartition("/")[2]
        if name.endswith(".weft"):
            reader, digest = ShardReader(store, item.key), hashlib.sha256()
            for group in range(reader.header.num_row_groups):
                for _, values in sorted(reader.read_row_group(group).items()):
                    digest.update(values.tobytes())
            found[int(name.split("-")[0])] = digest.hexdigest()
    return found


def _graphs_at_once(release: Release, results: Results, spec: attribution.GraphSpec) -> None:
    """Ask for the same graph several times at once."""
    store = release.bucket.store()
    ids = tuple(f"replicas-{number}" for number in range(1, NUM_GRAPHS + 1))
    with owners(store, *(f"operations/attribution-{graph_id}" for graph_id in ids)) as seen:
        with release.channel("attribution") as channel:
            # The bounds of the test of upgrades are others.
            operations = [create_graph(channel, graph_id, made_anew(spec, 100 + n)) for n, graph_id in enumerate(ids)]
        for operation in operations:
            release.wait("attribution", operation)
    results.graphs = [graph_without_times(store, graph_id) for graph_id in ids]
    results.graph_owners = list(seen.values())


@pytest.fixture(scope="module")
def results(release: Release, long_graph: LongGraph) -> Results:
    """Harvest over one, two and three replicas, and explain over two."""
    upload_corpus(release, "text")
    found = Results()
    for replicas in (1, 2, 3):
        if replicas > 1:
            release.upgrade(activations={"replicas": replicas}, attribution={"replicas": 2})
        done = harvest(release, f"replicas-{replicas}", num_tokens=NUM_TOKENS)
        assert done.tokens_committed == NUM_TOKENS
        found.shards[replicas] = _shards(release, f"replicas-{replicas}")
        if replicas == 2:
            _graphs_at_once(release, found, long_graph.spec)
    release.upgrade(activations={"replicas": 1}, attribution={"replicas": 1})
    return found


def test_harvest_is_the_same_over_one_two_and_three_replicas(release: Release, results: Results) -> None:
    """The same shards, whoever read them; with more replicas more than one of them did."""
    assert results.shards[1]
    assert results.shards[1] == results.shards[2] == results.shards[3]
    store = release.bucket.store()
    leases = [item.key for item in store.list("harvests/replicas-3/leases/")]
    harvesters = {read_json(store, key)[0]["owner"] for key in leases}
    assert len(harvesters) > 1, harvesters


def test_graph_is_the_same_over_one_and_two_replicas(results: Results, long_graph: LongGraph) -> None:
    """Asked for several times at once, each of two replicas begins some; all are what one made, to the byte."""
    assert results.graphs == [long_graph.document] * NUM_GRAPHS
    print("made by", results.graph_owners)  # noqa: T201  shown with -s
    assert all(results.graph_owners)
    # A replica that shows no life for the length of its lease, on a busy machine, loses its graph to the other.
    assert len({owners_of_one[0] for owners_of_one in results.graph_owners}) == 2
