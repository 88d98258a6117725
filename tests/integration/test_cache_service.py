"""The cache over gRPC: a dataset's life through the client, and what it answers to bad requests."""

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from shard_messages import shard_message

from weft.cache.v1 import messages_pb2, service_pb2, service_pb2_grpc
from weft_cache.wiring import registrations
from weft_client import AsyncClient, Client, Endpoint
from weft_client.aio.calls import unary
from weft_common.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnauthenticatedError,
    WeftError,
)
from weft_common.server import serving
from weft_common.settings import ServiceSettings
from weft_store import ObjectStore, open_store
from weft_store.shard import CodecSpec, encode_shard

TOKEN = "integration"


class Cache:
    """A cache that serves, its bucket, and a client of it."""

    def __init__(
        self, store: ObjectStore, endpoint: Endpoint, client: AsyncClient, registry: CollectorRegistry
    ) -> None:
        self.store, self.endpoint, self.client, self.registry = store, endpoint, client, registry
        self.stub = service_pb2_grpc.CacheServiceStub(client._connection.channel("cache"))

    async def fill(self, dataset_id: str, tokens: dict[int, tuple[int, messages_pb2.Split.ValueType]]) -> np.ndarray:
        """Create a dataset and commit random shards; the rows of shard 0 come back, [stream, L, T, D]."""
        spec = messages_pb2.DatasetSpec(
            model="models/m",
            model_revision="ab" * 32,
            num_layers=2,
            d_model=8,
            input_hook="mlp_in",
            output_hook="mlp_out",
            codec="bf16",
        )
        await unary(self.stub.CreateDataset, service_pb2.CreateDatasetRequest(dataset_id=dataset_id, spec=spec))
        name, rng, kept = f"datasets/{dataset_id}", np.random.default_rng(0), np.empty(0)
        for index, (num_tokens, split) in tokens.items():
            rows = rng.integers(-8, 8, (2, 2, num_tokens, 8)).astype(np.float32)
            kept = rows if index == 0 else kept
            encoded = encode_shard(
                {"input": rows[0], "output": rows[1]}, CodecSpec("bf16"), row_group_tokens=16, attributes={}
            )
            begin = service_pb2.BeginShardRequest(dataset=name, shard_index=index)
            upload = await unary(self.stub.BeginShard, begin)
            self.store.put(upload.key, encoded.data)
            shard = shard_message(
                encoded, upload.key, index=index, num_tokens=num_tokens, split=split, row_group_tokens=16
            )
            await unary(self.stub.CommitShard, service_pb2.CommitShardRequest(dataset=name, shard=shard))
        return kept


@pytest.fixture
async def cache() -> AsyncIterator[Cache]:
    """A cache in this process."""
    store, registry = open_store("memory://"), CollectorRegistry()
    async with (
        registrations(store, registry=registry) as served,
        serving("cache", ServiceSettings(token=TOKEN), served) as server,
    ):
        endpoint = Endpoint(f"127.0.0.1:{server.port}", TOKEN)
        async with AsyncClient.to(cache=endpoint) as client:
            yield Cache(store, endpoint, client, registry)


async def test_dataset_lives_through_the_client(cache: Cache) -> None:
    """Created, filled, sealed, planned, read, verified, summed up, listed and deleted, over gRPC."""
    rows = await cache.fill("a", {0: (40, messages_pb2.SPLIT_TRAIN), 1: (20, messages_pb2.SPLIT_HELD_OUT)})
    await unary(cache.stub.SealDataset, service_pb2.SealDatasetRequest(name="datasets/a", num_shards=2))
    datasets = cache.client.datasets
    found = await datasets.get("a")
    assert (found.state, found.num_train_tokens, found.num_held_out_tokens) == (
        messages_pb2.DATASET_STATE_SEALED,
        40,
        20,
    )
    assert len(found.statistics) == 2
    plan = await datasets.plan("a", messages_pb2.SPLIT_TRAIN, seed=3)
    assert sorted(piece.row_group for piece in plan.slices) == [0, 1, 2]
    page = await datasets.plan("a", messages_pb2.SPLIT_TRAIN, seed=3, start_position=1, max_slices=1)
    assert list(page.slices) == [plan.slices[1]]
    assert (page.num_tokens, page.num_slices) == (40, 3)
    read = [block async for block in datasets.read("a", shard_index=0, layer=1)]
    for name, group, block in read:
        wanted = rows[("input", "output").index(name), 1, 16 * group : 16 * group + 16]
        np.testing.assert_array_equal(block, wanted)
    assert len(read) == 6
    assert list((await datasets.verify("a")).problems) == []
    stats = await datasets.stats("a")
    assert stats.bytes_per_token == pytest.approx(found.size_bytes / 60)
    assert [each.name async for each in datasets.list()] == ["datasets/a"]
    await datasets.delete("a")
    assert [each async for each in datasets.list()] == []


async def test_verification_and_collection_are_long_work(cache: Cache) -> None:
    """Both are operations with progress; the same request id is the same work, and a flipped byte is named."""
    await cache.fill("a", {0: (40, messages_pb2.SPLIT_TRAIN)})
    await unary(cache.stub.SealDataset, service_pb2.SealDatasetRequest(name="datasets/a", num_shards=1))
    datasets, operations = cache.client.datasets, cache.client.operations
    key = (await datasets.get("a")).shards[0].key
    cache.store.put(key, cache.store.get(key)[:-1] + b"?")
    seen: list[Any] = []
    first = await datasets.start_verification("a", request_id="0b2fe5a8-0f8e-4c4e-9a68-6f4c3a1d0c11")
    again = await datasets.start_verification("a", request_id="0b2fe5a8-0f8e-4c4e-9a68-6f4c3a1d0c11")
    assert first.name == again.name
    found = await operations.wait(first, timeout_s=30, progress=seen.append)
    assert isinstance(found, service_pb2.VerifyDatasetResponse)
    assert [problem.split(":")[0] for problem in found.problems] == ["shard 0"]
    assert seen[-1].progress.unit == "bytes"
    with pytest.raises(NotFoundError):
        await datasets.start_verification("nope")
    with pytest.raises(InvalidArgumentError, match="min_age_s"):
        await datasets.collect_garbage(min_age_s=5)
    collected = await operations.wait(await datasets.collect_garbage(delete=True), timeout_s=30)
    assert (collected.deleted, list(collected.expired), collected.num_uploads) == (True, [], 0)


async def test_snapshot_is_planned_and_described_through_the_client(cache: Cache) -> None:
    """An open dataset answers for a snapshot as a sealed one of those shards does."""
    train, held_out = messages_pb2.SPLIT_TRAIN, messages_pb2.SPLIT_HELD_OUT
    datasets = cache.client.datasets
    await cache.fill("a", {0: (40, train), 2: (20, held_out)})
    first = await datasets.snapshot("a")
    await cache.fill("a", {1: (33, train)})
    second = await datasets.snapshot("a")
    assert [(each.snapshot, each.num_train_tokens, each.num_held_out_tokens) for each in (first, second)] == [
        (1, 40, 20),
        (2, 73, 20),
    ]
    assert (first.state, len(first.statistics)) == (messages_pb2.DATASET_STATE_OPEN, 2)
    assert await datasets.get("a", snapshot=1) == first
    assert not (await datasets.get("a")).statistics
    plan = await datasets.plan("a", train, seed=3, snapshot=2, since_snapshot=1)
    assert {(piece.shard_index, piece.row_group) for piece in plan.slices} == {(1, 0), (1, 1), (1, 2)}
    await unary(cache.stub.SealDataset, service_pb2.SealDatasetRequest(name="datasets/a", num_shards=3))
    assert (await datasets.snapshot("a")).snapshot == 0
    assert (await datasets.get("a", snapshot=1)).statistics == first.statistics
    assert await datasets.plan("a", train, seed=3, snapshot=2, since_snapshot=1) == plan
    alone = await datasets.plan("a", held_out, snapshot=2)
    assert [piece.shard_index for piece in alone.slices] == [2, 2]


async def test_metrics_count_answers_and_bytes(cache: Cache) -> None:
    """Every answer is counted by its code, bytes by direction and stage, damage apart."""
    await cache.fill("a", {0: (40, messages_pb2.SPLIT_TRAIN)})
    shard = (await cache.client.datasets.get("a")).shards[0]
    cache.store.put(shard.key, b"x" * shard.size_bytes)
    assert len((await cache.client.datasets.verify("a")).problems) == 1
    with pytest.raises(NotFoundError):
        await cache.client.datasets.get("nope")
    text = generate_latest(cache.registry).decode()
    assert 'weft_cache_requests_total{result="OK"} 5.0' in text
    assert 'weft_cache_requests_total{result="NOT_FOUND"} 1.0' in text
    assert f'weft_cache_bytes_total{{direction="in",stage="commit"}} {float(shard.size_bytes)}' in text
    assert "weft_cache_corrupt_total 1.0" in text
    ratio = next(line for line in text.splitlines() if line.startswith("weft_cache_compression_ratio"))
    assert float(ratio.split()[1]) == pytest.approx(2 * 40 * 2 * 2 * 8 / shard.size_bytes)


@pytest.mark.parametrize(
    ("request_fields", "kind", "message"),
    [
        ({"dataset": "datasets/nope"}, NotFoundError, "weft datasets list"),
        ({"dataset": "nope"}, InvalidArgumentError, "datasets/{id}"),
        ({"split": 0}, InvalidArgumentError, "SPLIT_TRAIN"),
        ({"world_size": 0}, InvalidArgumentError, "world_size is 0"),
        ({"rank": 2}, InvalidArgumentError, "rank is 2"),
        ({"epoch": -1}, InvalidArgumentError, "epoch is -1"),
        ({"start_position": 9}, InvalidArgumentError, "start_position is 9"),
        ({"dataset": "datasets/open"}, FailedPreconditionError, "SealDataset"),
        ({"dataset": "datasets/open", "snapshot": 1}, NotFoundError, "no snapshot 1"),
    ],
)
async def test_plan_refuses_and_says_what_to_do(
    cache: Cache, request_fields: dict[str, object], kind: type[WeftError], message: str
) -> None:
    """Each bad request has its code and a way out."""
    await cache.fill("a", {0: (40, messages_pb2.SPLIT_TRAIN)})
    await unary(cache.stub.SealDataset, service_pb2.SealDatasetRequest(name="datasets/a", num_shards=1))
    await cache.fill("open", {0: (40, messages_pb2.SPLIT_TRAIN)})
    fields = {"dataset": "datasets/a", "split": messages_pb2.SPLIT_TRAIN, "world_size": 2, **request_fields}
    with pytest.raises(kind, match=message.replace("{", r"\{")):
        await unary(cache.stub.PlanReads, service_pb2.PlanReadsRequest(**fields))


@pytest.mark.parametrize(
    ("fields", "kind", "message"),
    [
        ({"shard_index": 5}, NotFoundError, "no shard 5"),
        ({"layer": 2}, InvalidArgumentError, "layer is 2"),
        ({"row_groups": [3]}, InvalidArgumentError, "row_groups has 3"),
    ],
)
async def test_read_refuses_and_says_what_to_do(
    cache: Cache, fields: dict[str, object], kind: type[WeftError], message: str
) -> None:
    """An unknown shard, layer or row group is refused before anything is sent."""
    await cache.fill("a", {0: (40, messages_pb2.SPLIT_TRAIN)})
    blocks = cache.client.datasets.read("a", **{"shard_index": 0, "layer": 0, **fields})
    with pytest.raises(kind, match=message):
        await anext(blocks)


async def test_wrong_token_is_unauthenticated(cache: Cache) -> None:
    """Another token does not get in."""
    async with AsyncClient.to(cache=Endpoint(cache.endpoint.target, "wrong")) as client:
        with pytest.raises(UnauthenticatedError):
            await client.datasets.get("a")


async def test_synchronous_client_gives_the_same(cache: Cache) -> None:
    """The client that was made from the asyncio one reads the same dataset."""
    import asyncio

    await cache.fill("a", {0: (40, messages_pb2.SPLIT_TRAIN)})
    wanted = await cache.client.datasets.get("a")

    def read() -> tuple[messages_pb2.Dataset, list[str], int]:
        with Client.to(cache=cache.endpoint) as client:
            blocks = list(client.datasets.read("a", shard_index=0, layer=0, row_groups=[2]))
            with pytest.raises(NotFoundError):
                client.datasets.get("nope")
            return client.datasets.get("a"), [each.name for each in client.datasets.list()], len(blocks)

    assert await asyncio.to_thread(read) == (wanted, ["datasets/a"], 2)
