"""An index holds its dataset before it reads any of it, whichever replica begins, goes on or tries again."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fake_dataset_holds import FakeDatasetHolds
from google.longrunning import operations_pb2
from index_rig import IndexRig
from structlog.testing import capture_logs

from weft.features.v1 import index_pb2
from weft_attribution import converting_features as converting
from weft_attribution.core import dataset_holding
from weft_attribution.core.dataset_holding import DatasetHolding
from weft_attribution.core.feature_index.indexing import FeatureIndexing
from weft_attribution.core.ports import DatasetHolds
from weft_attribution.servicer_feature_index import INDEX, IndexWork
from weft_common.errors import (
    Code,
    DeadlineExceededError,
    FailedPreconditionError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
    WeftError,
)
from weft_common.operations import OperationManager, RetryPolicy
from weft_store.adapters.memory import MemoryObjectStore
from weft_store.documents import encode_json, read_json
from weft_store.operations import ObjectOperationStore

LAYERS = 4
NO_MODEL: Any = None
OPERATION = "operations/attribution-x"


class Reader:
    """A replica's bucket: counts what is read of shards, and may stop at the first of them."""

    def __init__(self, store: MemoryObjectStore) -> None:
        self._store = store
        self.num_read = 0
        self.reached, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._store, name)

        def through(*arguments: Any, **options: Any) -> Any:
            if "/shards/" in str(arguments[0]):
                self.num_read += 1
                self.reached.set()
                assert self.go_on.wait(30)
            return call(*arguments, **options)

        return through


class Replica:
    """One replica of the service, with its own view of the bucket and its own way to the cache."""

    def __init__(self, rig: IndexRig, holds: DatasetHolds | None) -> None:
        self.rig, store = rig, rig.store
        assert isinstance(store, MemoryObjectStore)
        self.reader: Any = Reader(store)
        indexing = FeatureIndexing(
            self.reader, NO_MODEL, rig, memory_bytes=1 << 30, workers=1, lease_s=0.2, poll_s=0.01
        )
        self.manager = OperationManager(
            "attribution",
            ObjectOperationStore(store, "attribution"),
            {INDEX: IndexWork(indexing, DatasetHolding(holds)).kind()},
            lease_s=0.2,
            poll_s=0.01,
            retry=RetryPolicy(base_s=0.001, cap_s=0.002, max_failures=4),
        )

    async def start(self) -> operations_pb2.Operation:
        """Ask for the index."""
        request = self.rig.request()
        asked = converting.index_request_to_proto(request)
        return await self.manager.start(INDEX, request.operation_id, asked, index_pb2.FeatureIndexMetadata())

    @asynccontextmanager
    async def working(self) -> AsyncIterator[operations_pb2.Operation]:
        """Work on it, and on nothing else."""
        operation = await self.start()
        async with self.manager.run():
            yield operation

    async def make(self) -> operations_pb2.Operation:
        """Work on it to its end."""
        async with self.working() as operation:
            ended = await self.manager.wait(operation.name, 30)
        assert ended.done
        return ended


def make_rig() -> IndexRig:
    return IndexRig.make(MemoryObjectStore(), num_layers=LAYERS)


def make_replica(rig: IndexRig, *failures: WeftError, fails_on: bool = False) -> tuple[Replica, FakeDatasetHolds]:
    """A replica that must not have read anything when it asks for its hold."""
    holds = FakeDatasetHolds(rig.store, list(failures), fails_on)
    replica = Replica(rig, holds)

    def nothing_read() -> None:
        assert (replica.reader.num_read, rig.asked) == (0, 0)

    holds.asked = nothing_read
    return replica, holds


async def test_index_holds_its_dataset_before_it_reads() -> None:
    """The holder is the operation by its name, and holds no more once it is done."""
    replica, holds = make_replica(make_rig())
    async with replica.working() as operation:
        replica.reader.go_on.clear()
        assert await asyncio.to_thread(replica.reader.reached.wait, 30)
        assert await holds.holders("d") == [operation.name]
        replica.reader.go_on.set()
        ended = await replica.manager.wait(operation.name, 30)
    assert ended.HasField("response")
    assert holds.taken == [("d", operation.name)]
    assert await holds.holders("d") == []


async def test_replica_that_goes_on_holds_anew() -> None:
    """One is stopped in the middle of the dataset; its successor holds before it reads on, under the same name."""
    rig = make_rig()
    first, first_holds = make_replica(rig)
    first.reader.go_on.clear()
    async with first.working() as operation:
        assert await asyncio.to_thread(first.reader.reached.wait, 30)
        assert await first_holds.holders("d") == [operation.name]
        first.reader.go_on.set()
    second = Replica(rig, second_holds := FakeDatasetHolds(rig.store))
    seen: list[int] = []
    second_holds.asked = lambda: seen.append(second.reader.num_read)
    assert (await second.make()).HasField("response")
    assert seen == [0]
    assert second_holds.taken == first_holds.taken == [("d", operation.name)]
    assert await first_holds.holders("d") == []


async def test_index_waits_for_a_cache_that_comes_back() -> None:
    """A cache that is away for a moment is asked again, and nothing is read before it has answered."""
    away = UnavailableError("away"), DeadlineExceededError("slow")
    replica, holds = make_replica(make_rig(), *away)
    assert (await replica.make()).HasField("response")
    assert len(holds.taken) == 1


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UnavailableError("connection refused"), Code.UNAVAILABLE, "WEFT_ATTRIBUTION_CACHE_TARGET is its address"),
        (DeadlineExceededError("no answer"), Code.UNAVAILABLE, "it goes on from what is stored"),
        (NotFoundError("no datasets/d"), Code.FAILED_PRECONDITION, "was deleted, or is being deleted"),
        (UnauthenticatedError("no token"), Code.FAILED_PRECONDITION, "WEFT_ATTRIBUTION_CACHE_TOKEN"),
        (PermissionDeniedError("not you"), Code.FAILED_PRECONDITION, "does not let attribution hold datasets/d"),
    ],
)
async def test_index_that_cannot_hold_reads_nothing(error: WeftError, code: Code, says: str) -> None:
    """It ends with what was wrong and what to do, the operation and the dataset by name; asked again it is made."""
    replica, holds = make_replica(make_rig(), error, fails_on=True)
    ended = await replica.make()
    assert (ended.error.code, holds.taken, replica.reader.num_read) == (code, [], 0)
    assert all(text in ended.error.message for text in (says, "datasets/d", ended.name))
    await replica.manager.delete(ended.name)
    holds.failures.clear()
    assert (await replica.make()).HasField("response")


async def test_dataset_that_is_being_deleted_is_refused() -> None:
    """When the index is asked for, and when its work begins."""
    rig = make_rig()
    manifest, _ = read_json(rig.store, "datasets/d/manifest.json")
    rig.store.put("datasets/d/manifest.json", encode_json({**manifest, "state": "deleting"}))
    indexing = FeatureIndexing(rig.store, NO_MODEL, rig, memory_bytes=1 << 30, workers=1)
    with pytest.raises(FailedPreconditionError, match="datasets/d is being deleted"):
        await indexing.check(rig.request())
    replica, holds = make_replica(rig)
    ended = await replica.make()
    assert (ended.error.code, holds.taken) == (Code.FAILED_PRECONDITION, [])
    assert "datasets/d was deleted, or is being deleted" in ended.error.message


async def test_index_without_a_cache_is_made_and_says_so() -> None:
    """Who names no cache gets an index, and one line of log that the dataset may go meanwhile."""
    with capture_logs() as logs:
        assert (await Replica(make_rig(), None).make()).HasField("response")
    (line,) = [line for line in logs if line["event"] == "dataset_is_not_held"]
    assert (line["dataset"], line["log_level"]) == ("d", "warning")
    assert "WEFT_ATTRIBUTION_CACHE_TARGET" in line["reason"]


async def test_waiting_work_is_held_where_the_cache_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its work holds in any case: a cache that is away or slow is passed over, and a dataset that is gone is told."""
    store = make_rig().store
    holds = FakeDatasetHolds(store, [UnavailableError("away"), NotFoundError("gone")])
    holding = DatasetHolding(holds)
    await holding.hold_waiting("d", OPERATION)
    with pytest.raises(FailedPreconditionError, match="harvest it again"):
        await holding.hold_waiting("d", OPERATION)
    await holding.hold_waiting("d", OPERATION)
    assert holds.taken == [("d", OPERATION)]

    class Slow:
        async def hold(self, dataset: str, holder: str) -> None:
            await asyncio.Event().wait()

    monkeypatch.setattr(dataset_holding, "_EARLY_S", 0.01)
    await DatasetHolding(Slow()).hold_waiting("d", OPERATION)
    with capture_logs() as logs:
        await DatasetHolding(None).hold_waiting("d", OPERATION)
    assert logs == []
