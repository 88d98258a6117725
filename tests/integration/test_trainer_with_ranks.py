"""Cache, trainer and real ranks as processes: from a small dataset to a transcoder that is exported and taken over."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from free_ports import free_port
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf.message import Message
from safetensors.numpy import load
from shard_messages import shard_message

from weft.cache.v1 import messages_pb2 as cache_messages
from weft.cache.v1 import service_pb2 as cache_service
from weft.cache.v1 import service_pb2_grpc as cache_grpc
from weft.training.v1 import messages_pb2, service_pb2, service_pb2_grpc
from weft_common.client import aio_channel
from weft_store import ObjectStore, open_store
from weft_store.documents import read_json
from weft_store.shard import CodecSpec, encode_shard

pytestmark = [pytest.mark.e2e, pytest.mark.distributed, pytest.mark.timeout(600)]

TOKEN = "token-of-the-test"
LAYERS, D_MODEL, SHARD_TOKENS = 3, 8, 512
WAIT_S = 240.0
TRAIN = cache_messages.SPLIT_TRAIN


class Services:
    """The two services over one bucket."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bucket_url = f"file://{folder / 'bucket'}"
        self.cache_port, self.trainer_port = free_port(), free_port()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("WEFT_")}
        settings = {
            "PORT": str(self.cache_port if name == "cache" else self.trainer_port),
            "TOKEN": TOKEN,
            "BUCKET_URL": self.bucket_url,
            "WORK_DIR": str(self.folder / "work"),
            "CACHE_TARGET": f"127.0.0.1:{self.cache_port}",
            "CACHE_TOKEN": TOKEN,
        }
        environment |= {f"WEFT_{name.upper()}_{key}": value for key, value in settings.items()}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", f"weft_{name}"], env=environment, stdout=log, stderr=log
            )

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].wait()

    def ranks(self) -> set[int]:
        """Return the processes that work for this bucket's runs."""
        found = set()
        for process in psutil.process_iter():
            try:
                if process.environ().get("WEFT_WORKER_BUCKET_URL") == self.bucket_url:
                    found.add(process.pid)
            except (psutil.Error, OSError):
                continue
        return found

    def logs(self) -> str:
        paths = [*self.folder.glob("*.log"), *self.folder.glob("work/**/log.txt")]
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in paths)


@contextmanager
def _running(folder: Path) -> Iterator[Services]:
    services = Services(folder)
    try:
        services.start("cache")
        services.start("trainer")
        yield services
    finally:
        for process in reversed(services.processes.values()):
            process.terminate()
        statuses = {name: process.wait(timeout=30) for name, process in services.processes.items()}
        assert statuses == {"cache": 0, "trainer": 0}, services.logs()
        assert services.ranks() == set()


async def _make_dataset(services: Services, store: ObjectStore) -> None:
    """Commit four shards, the last held out, of outputs that a transcoder can learn from the inputs."""
    async with aio_channel(f"127.0.0.1:{services.cache_port}", token=TOKEN) as connection:
        stub = cache_grpc.CacheServiceStub(connection)
        await _create(stub, "d")
        for index in range(4):
            await _commit(stub, store, "d", index, cache_messages.SPLIT_HELD_OUT if index == 3 else TRAIN)
        await stub.SealDataset(cache_service.SealDatasetRequest(name="datasets/d", num_shards=4))


async def _create(stub: cache_grpc.CacheServiceStub, dataset: str) -> cache_messages.Dataset:
    spec = cache_messages.DatasetSpec(
        model="models/tiny",
        model_revision="a" * 64,
        num_layers=LAYERS,
        d_model=D_MODEL,
        input_hook="mlp_in",
        output_hook="mlp_out",
        codec="uniform",
        target_fvu=1e-3,
    )
    create = cache_service.CreateDatasetRequest(dataset_id=dataset, spec=spec)
    return await stub.CreateDataset(create, wait_for_ready=True, timeout=WAIT_S)


async def _commit(
    stub: cache_grpc.CacheServiceStub,
    store: ObjectStore,
    dataset: str,
    index: int,
    split: "cache_messages.Split.ValueType",
    num_tokens: int = SHARD_TOKENS,
) -> None:
    mixing_LDD = np.random.default_rng(0).normal(size=(LAYERS, D_MODEL, D_MODEL)).astype(np.float32)
    inputs_LTD = np.random.default_rng([1, index]).normal(size=(LAYERS, num_tokens, D_MODEL)).astype(np.float32)
    outputs_LTD = np.maximum(inputs_LTD @ mixing_LDD, 0).astype(np.float32)
    codec = CodecSpec(kind="uniform", target_fvu=1e-3)
    shard = encode_shard({"input": inputs_LTD, "output": outputs_LTD}, codec, row_group_tokens=128, attributes={})
    begin = cache_service.BeginShardRequest(dataset=f"datasets/{dataset}", shard_index=index)
    upload = await stub.BeginShard(begin)
    store.put(upload.key, shard.data)
    committed = shard_message(shard, upload.key, index=index, num_tokens=num_tokens, split=split, row_group_tokens=128)
    await stub.CommitShard(cache_service.CommitShardRequest(dataset=f"datasets/{dataset}", shard=committed))


@pytest.fixture
async def services(tmp_path: Path) -> AsyncIterator[Services]:
    """Cache and trainer with a sealed dataset."""
    with _running(tmp_path) as running:
        await _make_dataset(running, open_store(running.bucket_url))
        yield running


SPEC = messages_pb2.TrainingSpec(
    dataset="datasets/d",
    num_features=32,
    activation=messages_pb2.ACTIVATION_TOP_K,
    top_k=8,
    num_steps=400,
    step_tokens=64,
    feature_ranks=2,
    data_ranks=1,
    learning_rate=1e-2,
    warmup_steps=5,
    decay_share=0.2,
    adam_beta1=0.9,
    adam_beta2=0.99,
    clip_norm=1.0,
    dead_after_tokens=10_000,
    checkpoint_steps=50,
)


class Client:
    """The trainer over a channel."""

    def __init__(self, services: Services, connection: grpc.aio.Channel) -> None:
        self.services = services
        self.stub = service_pb2_grpc.TrainingServiceStub(connection)
        self.operations = operations_pb2_grpc.OperationsStub(connection)

    async def create(self, run: str, **changes: Any) -> None:
        spec = messages_pb2.TrainingSpec()
        spec.CopyFrom(SPEC)
        spec.MergeFrom(messages_pb2.TrainingSpec(**changes))
        await self.stub.CreateRun(
            service_pb2.CreateRunRequest(run_id=run, spec=spec), wait_for_ready=True, timeout=WAIT_S
        )

    async def watch(self, run: str) -> tuple[list[int], messages_pb2.Run]:
        """Follow to the end over restarts of the trainer."""
        steps: list[int] = []
        async with asyncio.timeout(WAIT_S):
            while True:
                request = service_pb2.WatchRunRequest(name=f"runs/{run}", after_step=steps[-1] if steps else 0)
                try:
                    async for news in self.stub.WatchRun(request, wait_for_ready=True):
                        if news.HasField("metrics"):
                            steps.append(news.metrics.step)
                        elif news.HasField("run"):
                            found = news.run
                    return steps, found
                except grpc.RpcError as error:
                    if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                        raise
                    await asyncio.sleep(0.1)

    async def until(self, run: str, step: int) -> None:
        await self.finds(run, lambda found: found.step >= step)

    async def finds(self, run: str, state: Callable[[messages_pb2.Run], bool]) -> None:
        """Wait until a run is as it should be."""
        request = service_pb2.GetRunRequest(name=f"runs/{run}")
        async with asyncio.timeout(WAIT_S):
            while not state(await self.stub.GetRun(request)):  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def finish(self, operation: operations_pb2.Operation, into: Message) -> None:
        async with asyncio.timeout(WAIT_S):
            while not operation.done:
                operation = await self.operations.WaitOperation(
                    operations_pb2.WaitOperationRequest(name=operation.name), timeout=WAIT_S
                )
        assert operation.response.Unpack(into), f"{operation.error}\n{self.services.logs()}"


@pytest.fixture
async def client(services: Services) -> AsyncIterator[Client]:
    """A client of the trainer."""
    async with aio_channel(f"127.0.0.1:{services.trainer_port}", token=TOKEN) as connection:
        yield Client(services, connection)


def _weights(services: Services, run: str, step: int) -> dict[str, Any]:
    store, folder = open_store(services.bucket_url), f"runs/{run}/checkpoints/{step:08d}/"
    weights: dict[str, Any] = {}
    for name in read_json(store, f"{folder}manifest.json")[0]["files"]:
        rank = name.partition("-")[2]
        weights |= {f"{rank}/{each}": array for each, array in load(store.get(f"{folder}{name}")).items()}
    return weights


async def test_run_that_is_paused_and_loses_its_controller_goes_its_whole_way(
    services: Services, client: Client
) -> None:
    """
    A run whose ranks are paused once, and whose controller is killed later, ends with the weights of one left alone. It
    is evaluated, exported and taken over.
    """
    await client.create("alone")
    _, alone = await client.watch("alone")
    assert alone.state == messages_pb2.RUN_STATE_SUCCEEDED, services.logs()
    await client.create("whole")
    watching = asyncio.create_task(client.watch("whole"))
    await client.until("whole", 20)
    paused = await client.stub.PauseRun(service_pb2.PauseRunRequest(name="runs/whole"), timeout=WAIT_S)
    assert paused.state == messages_pb2.RUN_STATE_PAUSED, services.logs()
    assert services.ranks() == set()
    await client.stub.ResumeRun(service_pb2.ResumeRunRequest(name="runs/whole"), timeout=WAIT_S)
    await client.until("whole", paused.step + 1)
    before = services.ranks()
    services.kill("trainer")
    await asyncio.sleep(0.5)
    assert services.ranks() <= before
    services.start("trainer")
    steps, run = await watching
    assert run.state == messages_pb2.RUN_STATE_SUCCEEDED, services.logs()
    assert steps == list(range(1, SPEC.num_steps + 1))
    # The pause begins another attempt, the controller's death none.
    assert run.attempt == 2
    assert run.peak_memory_bytes > 100 << 20
    assert run.evaluation.explained_variance > 0.3
    expected, found = (_weights(services, name, SPEC.num_steps) for name in ("alone", "whole"))
    assert expected.keys() == found.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)

    evaluated = messages_pb2.Evaluation()
    request = service_pb2.EvaluateCheckpointRequest(checkpoint="runs/whole")
    await client.finish(await client.stub.EvaluateCheckpoint(request, timeout=WAIT_S), evaluated)
    assert evaluated == run.evaluation

    exported = messages_pb2.Transcoder()
    export = service_pb2.ExportTranscoderRequest(checkpoint="runs/whole", transcoder_id="t")
    await client.finish(await client.stub.ExportTranscoder(export, timeout=WAIT_S), exported)
    assert (exported.num_layers, exported.num_features, exported.d_model) == (LAYERS, 32, D_MODEL)
    assert (exported.model, exported.run, exported.dataset) == ("models/tiny", "runs/whole", "datasets/d")
    imported = await client.stub.ImportTranscoder(
        service_pb2.ImportTranscoderRequest(
            transcoder_id="mine", prefix=exported.prefix, model="models/tiny", model_revision="a" * 64
        ),
        timeout=WAIT_S,
    )
    assert (imported.num_features, imported.activation) == (32, exported.activation)
    assert imported.size_bytes == exported.size_bytes
    listed = await client.stub.ListTranscoders(service_pb2.ListTranscodersRequest(), timeout=WAIT_S)
    assert [entry.name for entry in listed.transcoders] == ["transcoders/mine", "transcoders/t"]


async def test_run_begins_while_its_dataset_is_harvested(services: Services, client: Client) -> None:
    """A shard that comes after the start is the second epoch, on other ranks; the transcoder tells of both."""
    store = open_store(services.bucket_url)
    async with aio_channel(f"127.0.0.1:{services.cache_port}", token=TOKEN) as connection:
        stub = cache_grpc.CacheServiceStub(connection)
        created = (await _create(stub, "grows")).create_time
        await _commit(stub, store, "grows", 2, cache_messages.SPLIT_HELD_OUT)
        await _commit(stub, store, "grows", 0, TRAIN, 8 * SHARD_TOKENS)
        await client.create("early", dataset="datasets/grows", take_snapshot=True, step_tokens=8, num_steps=700)
        await client.finds("early", lambda run: len(run.epochs) == 1)
        await _commit(stub, store, "grows", 1, TRAIN)
        watching = asyncio.create_task(client.watch("early"))
        await client.finds("early", lambda run: run.state == messages_pb2.RUN_STATE_RUNNING)
        await client.stub.PauseRun(service_pb2.PauseRunRequest(name="runs/early"), timeout=WAIT_S)
        # It answers after a minute, though ranks may be compiling their first step still.
        await client.finds("early", lambda run: run.state == messages_pb2.RUN_STATE_PAUSED)
        resume = service_pb2.ResumeRunRequest(name="runs/early", feature_ranks=1)
        await client.stub.ResumeRun(resume, timeout=WAIT_S)
        steps, run = await watching
    assert run.state == messages_pb2.RUN_STATE_SUCCEEDED, services.logs()
    assert steps == list(range(1, 701))
    found = [(epoch.index, epoch.snapshot, epoch.since_snapshot, epoch.num_tokens) for epoch in run.epochs]
    assert found == [(0, 1, 0, 4096), (1, 2, 1, 512), (2, 2, 0, 4608)]
    assert {epoch.dataset_create_time.ToJsonString() for epoch in run.epochs} == {created.ToJsonString()}
    assert run.evaluation.tokens == SHARD_TOKENS
    export = service_pb2.ExportTranscoderRequest(checkpoint="runs/early", transcoder_id="early")
    await client.finish(await client.stub.ExportTranscoder(export, timeout=WAIT_S), messages_pb2.Transcoder())
    manifest, _ = read_json(store, "transcoders/early/manifest.json")
    assert [entry["num_tokens"] for entry in manifest["epochs"]] == [4096, 512, 4608]
    # A checkpoint in the middle of the first epoch has seen nothing of what came later.
    export = service_pb2.ExportTranscoderRequest(checkpoint="runs/early/checkpoints/100", transcoder_id="earlier")
    await client.finish(await client.stub.ExportTranscoder(export, timeout=WAIT_S), messages_pb2.Transcoder())
    manifest, _ = read_json(store, "transcoders/earlier/manifest.json")
    assert [(entry["index"], entry["num_tokens"]) for entry in manifest["epochs"]] == [(0, 4096)]
