"""More replicas give the same results, and an upgrade in the middle of work fails no call that retries cover."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from cluster_rig.kubectl import until
from cluster_rig.release import Release
from cluster_rig.work import harvest, upload_corpus

from weft.cache.v1 import service_pb2 as cache_rpc
from weft.cache.v1.service_pb2_grpc import CacheServiceStub
from weft_store.documents import read_json
from weft_store.shard import ShardReader

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


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


def test_harvest_is_the_same_over_one_two_and_three_replicas(release: Release) -> None:
    """The same shards, whoever read them; with more replicas more than one of them did."""
    upload_corpus(release, "text")
    results = {}
    for replicas in (1, 2, 3):
        release.upgrade(activations={"replicas": replicas})
        done = harvest(release, f"replicas-{replicas}", num_tokens=9000)
        assert done.tokens_committed == 9000
        results[replicas] = _shards(release, f"replicas-{replicas}")
    assert results[1] == results[2] == results[3]
    store = release.bucket.store()
    leases = [item.key for item in store.list("harvests/replicas-3/leases/")]
    owners = {read_json(store, key)[0]["owner"] for key in leases}
    assert len(owners) > 1, owners
    release.upgrade(activations={"replicas": 1})


@contextmanager
def _calling(release: Release) -> Iterator[list[BaseException]]:
    """Ask the cache for its datasets again and again, with the retries that every client has; yields what failed."""
    failures: list[BaseException] = []
    ended = threading.Event()

    def ask() -> None:
        with release.channel("cache") as channel:
            stub = CacheServiceStub(channel)
            while not ended.wait(0.05):
                try:
                    stub.ListDatasets(cache_rpc.ListDatasetsRequest(), timeout=30, wait_for_ready=True)
                except Exception as error:
                    failures.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield failures
    finally:
        ended.set()
        thread.join()


def test_upgrade_in_the_middle_of_a_harvest_loses_nothing(release: Release) -> None:
    """Every service's pods are replaced while a harvest goes on; it ends with exactly the tokens asked for."""
    upload_corpus(release, "text")
    harvested: list[int] = []
    working = threading.Thread(
        target=lambda: harvested.append(harvest(release, "upgraded", num_tokens=20000).tokens_committed)
    )
    working.start()
    store = release.bucket.store()
    until(lambda: len(list(store.list("harvests/upgraded/leases/"))) >= 2, "the harvest goes on", 120, 0.2)
    with _calling(release) as failures:
        release.upgrade(logging={"level": "debug"})
        working.join(600)
    assert harvested == [20000]
    assert failures == []
    release.upgrade(logging={"level": "info"})
