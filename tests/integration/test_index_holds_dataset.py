"""An index under way keeps its dataset from being deleted, whoever asks, until it has ended in whatever way."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from indexed_house import SETTINGS, Indexed, indexed_house
from prometheus_client import CollectorRegistry

from weft_attribution.adapters.grpc_dataset_holds import GrpcDatasetHolds
from weft_cache.wiring import registrations
from weft_client import AsyncClient, Endpoint
from weft_common.client import aio_channel
from weft_common.errors import CancelledError, FailedPreconditionError, NotFoundError, WeftError
from weft_common.server import serving
from weft_common.settings import ServiceSettings
from weft_store.opening import open_store

TOKEN = "integration"


@dataclass
class Held:
    """
    Attribution and a cache over one bucket; texts come when `go_on` is set, or fail with `error`.

    Args:
        rig: The attribution service.
        cache: A client of the cache.
    """

    rig: Indexed
    cache: AsyncClient
    go_on: asyncio.Event
    error: WeftError | None = None

    async def start(self, index_id: str = "i1") -> Any:
        """Ask for an index."""
        return await self.rig.features.index("t", index_id, dataset="d", settings=SETTINGS)

    async def end(self, operation: Any) -> Any:
        """What comes of it."""
        return await self.rig.house.client.operations.wait(operation)

    async def holders(self) -> list[str]:
        """Who holds the dataset."""
        return [each.holder async for each in self.cache.datasets.holds("d")]


@pytest.fixture
async def held(tmp_path: Path) -> AsyncIterator[Held]:
    store = open_store(f"file://{tmp_path}/bucket")
    async with (
        registrations(store, registry=CollectorRegistry()) as served,
        serving("cache", ServiceSettings(token=TOKEN, drain_s=0), served) as server,
        aio_channel(server.target, token=TOKEN) as channel,
        AsyncClient.to(cache=Endpoint(server.target, TOKEN)) as cache,
        indexed_house(tmp_path, holds=GrpcDatasetHolds(channel)) as rig,
    ):
        held, sequences = Held(rig, cache, asyncio.Event()), rig.texts.sequences

        async def gated(*arguments: Any, **options: Any) -> Any:
            await held.go_on.wait()
            if held.error is not None:
                raise held.error
            return await sequences(*arguments, **options)

        rig.texts.sequences = gated  # type: ignore[method-assign]
        yield held


@pytest.mark.parametrize("end", ["finished", "failed", "cancelled"])
async def test_dataset_of_an_index_is_deleted_only_after_it(held: Held, end: str) -> None:
    """DeleteDataset is refused meanwhile with the operation's name, and goes through right after the end."""
    operation = await held.start()
    assert await held.holders() == [operation.name]
    with pytest.raises(FailedPreconditionError, match=f"held by {operation.name}"):
        await held.cache.datasets.delete("d")
    if end == "failed":
        held.error = FailedPreconditionError("the corpus is no longer what it was")
    if end == "cancelled":
        await held.rig.house.client.operations.cancel(operation.name)
    held.go_on.set()
    if end == "finished":
        assert (await held.end(operation)).num_tokens == 12 * 13
    else:
        with pytest.raises(CancelledError if end == "cancelled" else FailedPreconditionError):
            await held.end(operation)
    assert await held.holders() == []
    await held.cache.datasets.delete("d")
    with pytest.raises(NotFoundError):
        await held.cache.datasets.get("d")


async def test_index_that_waits_its_turn_holds_too(held: Held) -> None:
    """A replica makes one index at a time; the next one holds its dataset from when it was asked for."""
    operations = [await held.start(name) for name in ("i1", "i2")]
    assert await held.holders() == sorted(operation.name for operation in operations)
    held.go_on.set()
    for operation in operations:
        await held.end(operation)
    assert await held.holders() == []
    # What is asked for once more is there, and nothing is held for it.
    await held.end(await held.start())
    assert await held.holders() == []


async def test_index_that_failed_holds_again_when_it_goes_on(held: Held) -> None:
    """Between the two the dataset is free; the second attempt has the first one's name, and is as safe."""
    held.error = FailedPreconditionError("the corpus is no longer what it was")
    held.go_on.set()
    failed = await held.start()
    with pytest.raises(FailedPreconditionError, match="no longer what it was"):
        await held.end(failed)
    assert await held.holders() == []
    held.error = None
    held.go_on.clear()
    again = await held.start()
    assert again.name == failed.name
    with pytest.raises(FailedPreconditionError, match=f"held by {again.name}"):
        await held.cache.datasets.delete("d")
    held.go_on.set()
    assert (await held.end(again)).num_tokens == 12 * 13
