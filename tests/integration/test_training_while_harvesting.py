"""
Training that starts while a harvest writes: the real cache, the real controller's epochs and the loaders of real ranks,
over gRPC, in this process.

Every token carries its number, so that what ranks are dealt can be compared token by token. The harvest goes on
whenever a snapshot is taken, so that two runs see it equally far.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from shard_messages import shard_message

from weft.cache.v1 import messages_pb2, service_pb2, service_pb2_grpc
from weft.training.v1 import service_pb2_grpc as training_grpc
from weft_cache.wiring import registration
from weft_clt.config import Scales
from weft_clt.dealing import Dealer
from weft_clt.loader import LoaderOptions, TokenLoader
from weft_common.client import aio_channel, channel
from weft_common.server import serving
from weft_common.settings import ServiceSettings
from weft_store import ObjectStore, open_store
from weft_store.documents import read_json
from weft_store.shard import CodecSpec, encode_shard
from weft_trainer.adapters.grpc_catalog import GrpcCatalog
from weft_trainer.adapters.report_server import ReportServer, RunReportServicer, RunTokens
from weft_trainer.core.epochs import RunEpochs
from weft_trainer.core.ports import DatasetFacts
from weft_trainer.core.records import RunRecord
from weft_trainer.core.runs import RunRepository
from weft_trainer.worker.epochs import RankEpochs
from weft_trainer.worker.reads import CacheRowGroups, get_dataset, normalization_of

LAYERS, WIDTH, ROW_GROUP = 2, 4, 16
STEP_TOKENS, NUM_STEPS, NUM_STREAMS, SAVED_EVERY = 6, 200, 5, 4
# Sizes of the shards that come before the first snapshot is taken, and before each of the next ones; then the seal.
BATCHES = [[400], [40, 30], [50], [], [20], [70]]
SETTLED = [(1, 0, 400), (2, 1, 70), (3, 2, 50), (3, 0, 520), (4, 3, 20), (5, 4, 70), (0, 0, 610)]
SPEC = {
    "dataset": "datasets/d",
    "num_features": 8,
    "activation": "ACTIVATION_TOP_K",
    "top_k": 2,
    "num_steps": NUM_STEPS,
    "step_tokens": STEP_TOKENS,
    "feature_ranks": 1,
    "data_ranks": 1,
    "learning_rate": 1e-3,
    "adam_beta2": 0.99,
    "dead_after_tokens": 1000,
    "seed": 3,
    "take_snapshot": True,
}


@dataclass
class Harvest:
    """Commits shards one after the other, whose row r of shard s holds s, r // 128 and r % 128."""

    store: ObjectStore
    stub: Any
    dataset: str = "d"
    shards: list[int] = field(default_factory=list)

    async def begin(self) -> None:
        spec = messages_pb2.DatasetSpec(
            model="models/m", model_revision="ab" * 32, num_layers=LAYERS, d_model=WIDTH, input_hook="mlp_in",
            output_hook="mlp_out", codec="bf16",
        )  # fmt: skip
        await self.stub.CreateDataset(service_pb2.CreateDatasetRequest(dataset_id=self.dataset, spec=spec))
        await self.commit(24, messages_pb2.SPLIT_HELD_OUT)

    async def commit(self, num_tokens: int, split: "messages_pb2.Split.ValueType" = messages_pb2.SPLIT_TRAIN) -> None:
        name, index, rows = f"datasets/{self.dataset}", len(self.shards), np.arange(num_tokens)
        self.shards.append(num_tokens)
        values_TD = np.stack([np.full(num_tokens, index), rows // 128, rows % 128, np.ones(num_tokens)], 1)
        rows_LTD = np.broadcast_to(values_TD, (LAYERS, num_tokens, WIDTH)).astype(np.float32)
        encoded = encode_shard(
            {"input": rows_LTD, "output": rows_LTD}, CodecSpec("bf16"), row_group_tokens=ROW_GROUP, attributes={}
        )
        upload = await self.stub.BeginShard(service_pb2.BeginShardRequest(dataset=name, shard_index=index))
        self.store.put(upload.key, encoded.data)
        shard = shard_message(
            encoded, upload.key, index=index, num_tokens=num_tokens, split=split, row_group_tokens=ROW_GROUP
        )
        await self.stub.CommitShard(service_pb2.CommitShardRequest(dataset=name, shard=shard))

    async def seal(self) -> None:
        request = service_pb2.SealDatasetRequest(name=f"datasets/{self.dataset}", num_shards=len(self.shards))
        await self.stub.SealDataset(request)


class HarvestedCatalog(GrpcCatalog):
    """Before a snapshot is taken, the harvest goes on by a batch of shards; after the last one it is sealed."""

    def __init__(self, connection: Any, harvest: Harvest) -> None:
        super().__init__(connection)
        self._harvest, self._batches = harvest, iter(BATCHES)

    async def snapshot(self, name: str) -> DatasetFacts:
        batch = next(self._batches, None)
        for num_tokens in batch or ():
            await self._harvest.commit(num_tokens)
        if batch is None:
            await self._harvest.seal()
        return await super().snapshot(name)


@dataclass
class World:
    """A bucket, the cache over it, a harvest that goes on, and a controller that ranks can ask."""

    store: ObjectStore
    harvest: Harvest
    runs: RunRepository
    epochs: RunEpochs
    cache_target: str
    report_target: str
    attempt: int = 0

    async def start(self) -> None:
        """Start the next attempt as a supervisor does."""
        if not self.attempt:
            await self.runs.create(RunRecord(run="r", spec=SPEC, create_time="2026-01-02T03:04:05Z"))
        self.attempt += 1
        await self.epochs.prepare("r")
        await self.runs.change("r", lambda record: replace(record, attempt=self.attempt))

    async def snapshots(self) -> list[tuple[int, int, int]]:
        """Snapshot, the one that is left out, and tokens, of each epoch."""
        record = await self.runs.get("r")
        return [(epoch.snapshot, epoch.since_snapshot, epoch.num_tokens) for epoch in record.epochs]


@asynccontextmanager
async def _world(folder: Path) -> AsyncIterator[World]:
    """Serve everything, with a dataset that has held-out tokens only."""
    store = open_store("memory://")
    cache = registration(store, registry=CollectorRegistry())
    async with (
        serving("cache", ServiceSettings(insecure_no_auth=True), [cache]) as server,
        aio_channel(server.target) as connection,
    ):
        harvest = Harvest(store, service_pb2_grpc.CacheServiceStub(connection))
        await harvest.begin()
        runs = RunRepository(store)
        epochs = RunEpochs(runs, HarvestedCatalog(connection, harvest))
        # Ranks report nothing here, so there is no desk.
        servicer = RunReportServicer(None, epochs, RunTokens(None))  # type: ignore[arg-type]
        reports = ReportServer(servicer, "127.0.0.1", 0, folder / "port")
        await reports.start()
        try:
            yield World(store, harvest, runs, epochs, server.target, reports.target)
        finally:
            await reports.stop()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A world of one run."""
    async with _world(tmp_path) as made:
        yield made


class Ranks:
    """The loaders of one attempt's ranks, as `Rank.train` makes them."""

    def __init__(self, world: World, world_size: int) -> None:
        document, _ = read_json(world.store, "runs/r/run.json")
        self._channels = [channel(world.cache_target), channel(world.report_target)]
        cache = service_pb2_grpc.CacheServiceStub(self._channels[0])
        stub = training_grpc.RunReportServiceStub(self._channels[1])
        views = [
            RankEpochs(world.store, stub, run="r", attempt=world.attempt, document=document, retry_s=5)
            for _ in range(world_size)
        ]
        dataset = get_dataset(cache, "datasets/d", views[0].first)
        units = normalization_of(dataset, Scales.SEPARATE)
        self.scale = float(units.input_scale_L[0])
        self.sources = [
            CacheRowGroups(
                cache, world.store, "datasets/d", messages_pb2.SPLIT_TRAIN,
                rank=0, world_size=1, seed=SPEC["seed"], over=view.over,
            )
            for view in views
        ]  # fmt: skip
        self.loaders = [
            TokenLoader(
                source, units, step_tokens=STEP_TOKENS, rank=rank, world_size=world_size,
                options=LoaderOptions(num_streams=NUM_STREAMS),
            )
            for rank, source in enumerate(self.sources)
        ]  # fmt: skip

    def restore(self, state: str) -> None:
        for loader in self.loaders:
            loader.restore(json.loads(state))

    def state(self) -> str:
        states = {json.dumps(loader.state()) for loader in self.loaders}
        assert len(states) == 1
        return states.pop()

    def step(self) -> list[tuple[int, int]]:
        """Shard and row of each token of a step, over all ranks."""
        tokens = []
        for loader in self.loaders:
            batch = loader.draw()
            for values in (batch.inputs_LOD[0] / self.scale).round().int().tolist():
                tokens.append((values[0], 128 * values[1] + values[2]))
        return tokens

    def close(self) -> None:
        """End as a kill does: nothing is told to anybody."""
        for loader, source in zip(self.loaders, self.sources, strict=True):
            loader.close()
            source.close()
        for each in self._channels:
            each.close()


async def _undisturbed(world: World, world_size: int = 1) -> list[list[tuple[int, int]]]:
    """Start an attempt that has no checkpoint, and return what it is dealt, step by step."""
    await world.start()

    def train() -> list[list[tuple[int, int]]]:
        ranks = Ranks(world, world_size)
        try:
            return [ranks.step() for _ in range(NUM_STEPS)]
        finally:
            ranks.close()

    return await asyncio.to_thread(train)


async def test_epochs_follow_the_harvest(world: World) -> None:
    """New shards by themselves, all again where nothing came, everything once sealed; the units are the first's."""
    await _undisturbed(world)
    assert await world.snapshots() == SETTLED

    def first() -> messages_pb2.Dataset:
        with channel(world.cache_target) as connection:
            return get_dataset(service_pb2_grpc.CacheServiceStub(connection), "datasets/d", 1)

    found = await asyncio.to_thread(first)
    assert (found.num_train_tokens, found.num_held_out_tokens) == (400, 24)
    rows = np.array([(1, row // 128, row % 128, 1) for row in range(400)], float)
    assert found.statistics[0].input.mean_norm == pytest.approx(np.linalg.norm(rows, axis=1).mean())


async def test_token_is_dealt_once_in_the_first_epoch_over_it(world: World) -> None:
    """The first three epochs together deal every token of the third snapshot once; the fourth does so again."""
    await world.start()

    def deal() -> dict[int, Counter[tuple[str, int, int]]]:
        ranks = Ranks(world, 1)
        try:
            dealer = Dealer(ranks.sources[0].at, step_tokens=STEP_TOKENS, num_streams=NUM_STREAMS)
            dealt: dict[int, Counter[tuple[str, int, int]]] = {}
            held = [0]
            while min(held) <= 3:
                for piece in dealer.deal():
                    key, group = piece.row_group.where
                    for row in piece.row_group.order()[piece.start : piece.stop]:
                        dealt.setdefault(piece.row_group.epoch, Counter())[key, group, int(row)] += 1
                state = dealer.state()
                held = [state["epoch"], *(piece[0] for piece in [*state["rests"], *filter(None, state["streams"])])]
            return dealt
        finally:
            ranks.close()

    dealt = await asyncio.to_thread(deal)
    once = dealt[0] + dealt[1] + dealt[2]
    assert set(once.values()) == {1}
    assert once.total() == 520
    assert dealt[3] == once


@pytest.mark.parametrize("sizes", [(2, 3, 1, 6), (6, 1, 2)])
async def test_run_killed_in_each_epoch_deals_the_same_tokens(
    world: World, tmp_path: Path, sizes: tuple[int, ...]
) -> None:
    """Right after the first step that reaches into an epoch, and resumed with other ranks from its last checkpoint."""
    (tmp_path / "other").mkdir()
    async with _world(tmp_path / "other") as other:
        undisturbed = await _undisturbed(other)
    dealt: dict[int, list[tuple[int, int]]] = {}
    killed_in: set[int] = set()
    saved, state = 0, ""

    def live(world_size: int) -> None:
        """Train until a kill, or to the end."""
        nonlocal saved, state
        ranks = Ranks(world, world_size)
        try:
            if state:
                ranks.restore(state)
            for step in range(saved, NUM_STEPS):
                found = ranks.step()
                assert dealt.setdefault(step, found) == found
                if (step + 1) % SAVED_EVERY == 0:
                    saved, state = step + 1, ranks.state()
                epoch = json.loads(ranks.state())["epoch"]
                if epoch not in killed_in:
                    killed_in.add(epoch)
                    return
        finally:
            ranks.close()

    while len(dealt) < NUM_STEPS:
        await world.start()
        await asyncio.to_thread(live, sizes[world.attempt % len(sizes)])
    assert [dealt[step] for step in range(NUM_STEPS)] == undisturbed
    assert await world.snapshots() == SETTLED
    assert len(killed_in) >= 5
    assert killed_in >= {0, 1, 2, 3, 6}


async def test_snapshots_of_a_dataset_that_was_sealed_meanwhile_give_the_same_tokens(world: World) -> None:
    """A run that lost its checkpoints goes over the epochs of its document once more, with other ranks."""
    undisturbed = await _undisturbed(world)
    sealed = await world.harvest.stub.GetDataset(service_pb2.GetDatasetRequest(name="datasets/d"))
    assert sealed.state == messages_pb2.DATASET_STATE_SEALED
    assert await _undisturbed(world, 3) == undisturbed
    assert await world.snapshots() == SETTLED
