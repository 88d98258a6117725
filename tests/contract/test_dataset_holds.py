"""Holds that attribution takes: one suite over the fake of the tests and over the cache service itself."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import numpy as np
import pytest
from fake_dataset_holds import FakeDatasetHolds
from free_ports import free_port
from index_rig import put_dataset
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from weft_attribution.adapters.grpc_dataset_holds import GrpcDatasetHolds
from weft_attribution.core.ports import DatasetHolds
from weft_cache.wiring import registration
from weft_client import AsyncClient, Endpoint
from weft_common.client import aio_channel
from weft_common.errors import NotFoundError, UnauthenticatedError, UnavailableError
from weft_common.operation_store import Record, change_record
from weft_common.server import serving
from weft_common.settings import ServiceSettings
from weft_store.adapters.memory import MemoryObjectStore
from weft_store.documents import encode_json, read_json
from weft_store.operations import ObjectOperationStore

TOKEN = "contract"
HOLDER = "operations/attribution-index-0f"
MANIFEST = "datasets/d/manifest.json"
Sides = tuple[DatasetHolds, Callable[[str], Awaitable[list[str]]]]


@pytest.fixture
def store() -> MemoryObjectStore:
    """A bucket with a sealed dataset, and an operation of attribution that goes on."""
    store = MemoryObjectStore()
    put_dataset(store, [np.zeros((1, 4, 2), np.float32)])
    record = Record("feature-index", b"", b"", 0.0)
    ObjectOperationStore(store, "attribution").put(HOLDER, record.encode(), etag=None, create=True)
    return store


@pytest.fixture(params=["fake", "cache"])
async def sides(request: pytest.FixtureRequest, store: MemoryObjectStore) -> AsyncIterator[Sides]:
    """Who takes holds, and who tells them."""
    if request.param == "fake":
        fake = FakeDatasetHolds(store)
        yield fake, fake.holders
        return
    settings = ServiceSettings(token=TOKEN, drain_s=0)
    async with (
        serving("cache", settings, [registration(store, registry=CollectorRegistry())]) as server,
        aio_channel(server.target, token=TOKEN) as channel,
        AsyncClient.to(cache=Endpoint(server.target, TOKEN)) as client,
    ):

        async def holders(dataset: str) -> list[str]:
            return [each.holder async for each in client.datasets.holds(dataset)]

        yield GrpcDatasetHolds(channel), holders


async def test_hold_counts_until_its_operation_is_done(sides: Sides, store: MemoryObjectStore) -> None:
    """Asked for once or twice it is one holder, and it is over with the operation's own document."""
    holds, holders = sides
    assert await holders("d") == []
    for _ in range(2):
        await holds.hold("d", HOLDER)
        assert await holders("d") == [HOLDER]
    operations = ObjectOperationStore(store, "attribution")
    change_record(operations, HOLDER, lambda record: replace(record, done=True))
    assert await holders("d") == []


async def test_hold_of_what_is_gone_or_going_is_not_found(sides: Sides, store: MemoryObjectStore) -> None:
    """Neither a dataset that never was nor one that is being deleted is held."""
    holds, _ = sides
    with pytest.raises(NotFoundError):
        await holds.hold("absent", HOLDER)
    manifest, _etag = read_json(store, MANIFEST)
    store.put(MANIFEST, encode_json({**manifest, "state": "deleting"}))
    with pytest.raises(NotFoundError):
        await holds.hold("d", HOLDER)
    assert list(store.list("datasets/d/holds/")) == []


async def test_cache_that_is_away_or_knows_us_not_says_so(store: MemoryObjectStore) -> None:
    """The adapter tells one that cannot be reached from one that refuses a token."""
    settings = ServiceSettings(token=TOKEN, drain_s=0)
    async with (
        serving("cache", settings, [registration(store, registry=CollectorRegistry())]) as server,
        aio_channel(server.target, token="another") as channel,
    ):
        with pytest.raises(UnauthenticatedError):
            await GrpcDatasetHolds(channel).hold("d", HOLDER)
    async with aio_channel(f"127.0.0.1:{free_port()}", token=TOKEN) as channel:
        with pytest.raises(UnavailableError):
            await GrpcDatasetHolds(channel).hold("d", HOLDER)


async def test_cache_of_before_there_were_holds_is_passed_over() -> None:
    """In the middle of an upgrade work goes on as it did before, and the log says so."""
    with capture_logs() as logs:
        async with (
            serving("cache", ServiceSettings(token=TOKEN, drain_s=0), []) as server,
            aio_channel(server.target, token=TOKEN) as channel,
        ):
            await GrpcDatasetHolds(channel).hold("d", HOLDER)
    (line,) = [line for line in logs if line["event"] == "datasets_cannot_be_held"]
    assert (line["dataset"], line["holder"]) == ("d", HOLDER)
