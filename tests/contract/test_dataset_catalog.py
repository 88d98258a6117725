"""The catalog that harvests speak to: one suite over the fake of the tests and over the cache service itself."""

import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
import pytest
from harvest_fakes import FakeCatalog
from prometheus_client import CollectorRegistry

from weft_activations.adapters.grpc_catalog import GrpcCatalog
from weft_activations.core.ports import CommittedShard, DatasetCatalog, DatasetSpec, DatasetState, Split
from weft_cache.wiring import registration
from weft_common.client import aio_channel
from weft_common.errors import AlreadyExistsError, DataLossError, FailedPreconditionError, NotFoundError
from weft_common.server import serving
from weft_common.settings import ServiceSettings
from weft_store.adapters.memory import MemoryObjectStore
from weft_store.shard import CodecSpec, encode_shard

SPEC = DatasetSpec(
    model="models/m",
    model_revision="ab" * 32,
    num_layers=2,
    d_model=4,
    input_hook="mlp_in",
    output_hook="mlp_out",
    codec="bf16",
    target_fvu=0.0,
    corpus="corpora/c",
    corpus_digest="cd" * 32,
)


@pytest.fixture
def store() -> MemoryObjectStore:
    return MemoryObjectStore()


@pytest.fixture(params=["fake", "cache"])
async def catalog(request: pytest.FixtureRequest, store: MemoryObjectStore) -> AsyncIterator[DatasetCatalog]:
    if request.param == "fake":
        yield FakeCatalog(store)
        return
    settings = ServiceSettings(insecure_no_auth=True, drain_s=0)
    async with (
        serving("cache", settings, [registration(store, registry=CollectorRegistry())]) as server,
        aio_channel(server.target) as channel,
    ):
        yield GrpcCatalog(channel)


def _put(store: MemoryObjectStore, key: str, index: int, seed: int = 0) -> CommittedShard:
    values = np.random.default_rng(seed).normal(size=(2, 5, 4)).astype(np.float32)
    encoded = encode_shard({"input": values, "output": -values}, CodecSpec("bf16"), attributes={})
    store.put(key, encoded.data, if_absent=True)
    return CommittedShard(
        index=index,
        key=key,
        sha256=hashlib.sha256(encoded.data).hexdigest(),
        size_bytes=len(encoded.data),
        num_tokens=5,
        split=Split.HELD_OUT,
        row_group_tokens=256,
        statistics=encoded.statistics,
    )


async def test_catalog_creates_once_and_keeps_the_spec(catalog: DatasetCatalog) -> None:
    """The same spec again is success, another one is not, and what is found is what was asked for."""
    assert await catalog.find_dataset("d") is None
    assert await catalog.create_dataset("d", SPEC) is DatasetState.OPEN
    assert await catalog.create_dataset("d", SPEC) is DatasetState.OPEN
    assert await catalog.find_dataset("d") == (SPEC, DatasetState.OPEN)
    with pytest.raises(AlreadyExistsError):
        await catalog.create_dataset("d", replace(SPEC, corpus_digest="ee" * 32))


async def test_catalog_commits_the_first_shard_of_an_index(catalog: DatasetCatalog, store: MemoryObjectStore) -> None:
    """Whoever commits later gets the first one back, and so does whoever begins it anew."""
    await catalog.create_dataset("d", SPEC)
    targets = [await catalog.begin_shard("d", 0) for _ in range(2)]
    assert targets[0].committed is None
    assert targets[0].key != targets[1].key
    shards = [_put(store, target.key, 0, seed) for seed, target in enumerate(targets)]
    first = await catalog.commit_shard("d", shards[0])
    assert (first.key, first.sha256, first.num_tokens, first.split) == (
        targets[0].key,
        shards[0].sha256,
        5,
        Split.HELD_OUT,
    )
    assert (await catalog.commit_shard("d", shards[1])).key == targets[0].key
    assert (await catalog.commit_shard("d", shards[0])).key == targets[0].key
    again = (await catalog.begin_shard("d", 0)).committed
    assert again is not None
    assert again.key == targets[0].key


async def test_catalog_refuses_a_shard_that_is_not_what_it_says(
    catalog: DatasetCatalog, store: MemoryObjectStore
) -> None:
    """Bytes that are missing or others are data loss, and nothing is committed."""
    await catalog.create_dataset("d", SPEC)
    target = await catalog.begin_shard("d", 0)
    shard = _put(store, target.key, 0)
    with pytest.raises(DataLossError):
        await catalog.commit_shard("d", replace(shard, sha256="00" * 32))
    store.delete(target.key)
    with pytest.raises(DataLossError):
        await catalog.commit_shard("d", shard)
    assert (await catalog.begin_shard("d", 0)).committed is None


async def test_catalog_seals_what_is_complete(catalog: DatasetCatalog, store: MemoryObjectStore) -> None:
    """A missing shard refuses the seal; a seal asked for twice is success; a sealed dataset takes no more."""
    await catalog.create_dataset("d", SPEC)
    target = await catalog.begin_shard("d", 0)
    await catalog.commit_shard("d", _put(store, target.key, 0))
    with pytest.raises(FailedPreconditionError):
        await catalog.seal_dataset("d", 2)
    await catalog.seal_dataset("d", 1)
    await catalog.seal_dataset("d", 1)
    assert await catalog.create_dataset("d", SPEC) is DatasetState.SEALED
    again = await catalog.begin_shard("d", 0)
    assert again.committed is not None
    with pytest.raises(FailedPreconditionError):
        await catalog.begin_shard("d", 1)


async def test_catalog_does_not_know_other_datasets(catalog: DatasetCatalog) -> None:
    """Work on a dataset that nobody created is not found."""
    for call in (catalog.begin_shard("nope", 0), catalog.seal_dataset("nope", 1)):
        with pytest.raises(NotFoundError):
            await call
