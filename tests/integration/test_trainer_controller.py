"""The trainer as a process, its ranks as processes of torchrun, over the real RPCs."""

import asyncio
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import trustme
from free_ports import free_port
from google.longrunning import operations_pb2, operations_pb2_grpc

from weft.cache.v1 import messages_pb2 as cache_messages
from weft.cache.v1 import retention_pb2
from weft.cache.v1 import service_pb2 as cache_service
from weft.cache.v1 import service_pb2_grpc as cache_grpc
from weft.training.v1 import messages_pb2, service_pb2, service_pb2_grpc
from weft_common.client import aio_channel, error_from_rpc
from weft_common.errors import FailedPreconditionError, NotFoundError, UnauthenticatedError
from weft_common.server import Registration, serving
from weft_common.settings import ServiceSettings

pytestmark = pytest.mark.e2e

ASSETS = Path(__file__).resolve().parents[1] / "assets"
TOKEN = "token-of-the-trainer"
WAIT_S = 120.0


class OneDataset(cache_grpc.CacheServiceServicer):
    """A catalog with one sealed dataset."""

    async def GetDataset(  # noqa: N802  gRPC names it
        self, request: cache_service.GetDatasetRequest, context: Any
    ) -> cache_messages.Dataset:
        if request.name != "datasets/d":
            raise NotFoundError(f"there is no dataset {request.name}")
        return cache_messages.Dataset(
            name="datasets/d",
            spec=cache_messages.DatasetSpec(num_layers=2, d_model=4),
            state=cache_messages.DATASET_STATE_SEALED,
            num_train_tokens=1000,
            num_held_out_tokens=100,
        )

    async def HoldDataset(  # noqa: N802  gRPC names it
        self, request: retention_pb2.HoldDatasetRequest, context: Any
    ) -> retention_pb2.Hold:
        return retention_pb2.Hold(holder=request.holder)


def _spec(**changes: Any) -> messages_pb2.TrainingSpec:
    values: dict[str, Any] = {
        "dataset": "datasets/d",
        "num_features": 8,
        "activation": messages_pb2.ACTIVATION_TOP_K,
        "top_k": 2,
        "num_steps": 40,
        "step_tokens": 4,
        "feature_ranks": 2,
        "data_ranks": 1,
        "learning_rate": 1e-3,
        "adam_beta2": 0.99,
        "dead_after_tokens": 1000,
    }
    return messages_pb2.TrainingSpec(**{**values, **changes})


class Trainer:
    """A trainer process that can be killed and started again on the same port."""

    def __init__(self, folder: Path, cache_target: str) -> None:
        self.folder = folder
        self.pids = folder / "pids"
        self.pids.mkdir()
        self.port = free_port()
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("WEFT_")}
        self.environment = {
            **inherited,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ASSETS), inherited.get("PYTHONPATH")])),
            "STAND_IN_PIDS": str(self.pids),
            "WEFT_TRAINER_PORT": str(self.port),
            "WEFT_TRAINER_TOKEN": TOKEN,
            "WEFT_TRAINER_BUCKET_URL": f"file://{folder / 'bucket'}",
            "WEFT_TRAINER_WORK_DIR": str(folder / "work"),
            "WEFT_TRAINER_CACHE_TARGET": cache_target,
        }
        self.tls: dict[str, Path] = {}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "trainer.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(ASSETS / "stand_in_trainer.py")], env=self.environment, stdout=log, stderr=log
            )

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(timeout=20)

    def living_ranks(self) -> set[int]:
        """Return the stand-ins that still run."""
        living = set()
        for path in self.pids.iterdir():
            try:
                process = psutil.Process(int(path.name))
                if process.status() != psutil.STATUS_ZOMBIE and "stand_in_rank" in " ".join(process.cmdline()):
                    living.add(process.pid)
            except psutil.NoSuchProcess:
                continue
        return living

    @asynccontextmanager
    async def client(self, token: str = TOKEN) -> AsyncIterator[service_pb2_grpc.TrainingServiceStub]:
        async with aio_channel(f"127.0.0.1:{self.port}", token=token, **self.tls) as connection:
            yield service_pb2_grpc.TrainingServiceStub(connection)


@asynccontextmanager
async def _beside_a_cache(folder: Path, settings: ServiceSettings) -> AsyncIterator[Trainer]:
    """Serve the catalog and make a trainer that nobody has started yet; nothing of it is left afterwards."""
    registration = Registration(
        cache_service.DESCRIPTOR.services_by_name["CacheService"].full_name,
        lambda server: cache_grpc.add_CacheServiceServicer_to_server(OneDataset(), server),
    )
    async with serving("cache", settings, [registration]) as cache:
        running = Trainer(folder, cache.target)
        try:
            yield running
        finally:
            status = running.terminate()
            left = running.living_ranks()
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            assert (status, left) == (0, set()), (folder / "trainer.log").read_text()[-3000:]


@pytest.fixture
async def trainer(tmp_path: Path) -> AsyncIterator[Trainer]:
    """A trainer with stand-in ranks."""
    async with _beside_a_cache(tmp_path, ServiceSettings(insecure_no_auth=True)) as running:
        running.start()
        yield running


async def _create(stub: service_pb2_grpc.TrainingServiceStub, **changes: Any) -> operations_pb2.Operation:
    request = service_pb2.CreateRunRequest(run_id="r", spec=_spec(**changes), request_id=str(uuid.uuid4()))
    return await stub.CreateRun(request, wait_for_ready=True, timeout=WAIT_S)


async def _get(stub: service_pb2_grpc.TrainingServiceStub) -> messages_pb2.Run:
    return await stub.GetRun(service_pb2.GetRunRequest(name="runs/r"), wait_for_ready=True, timeout=WAIT_S)


async def _until(stub: service_pb2_grpc.TrainingServiceStub, step: int) -> messages_pb2.Run:
    async with asyncio.timeout(WAIT_S):
        while (run := await _get(stub)).step < step:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return run


async def _watch(trainer: Trainer, after: int = 0) -> tuple[list[int], messages_pb2.Run]:
    """Follow to the end, coming back with what one has whenever the trainer goes away."""
    steps: list[int] = []
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                async with trainer.client() as stub:
                    request = service_pb2.WatchRunRequest(name="runs/r", after_step=steps[-1] if steps else after)
                    async for news in stub.WatchRun(request, wait_for_ready=True):
                        if news.HasField("metrics"):
                            steps.append(news.metrics.step)
                        elif news.HasField("run"):
                            run = news.run
                    return steps, run
            except grpc.RpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                    raise
                await asyncio.sleep(0.1)


async def test_trainer_trains_pauses_resumes_and_evaluates(trainer: Trainer) -> None:
    """A run goes all its way over RPC, and every step is seen once."""
    async with trainer.client() as stub:
        # Long enough to be in the middle of it still when the pause is asked for on a busy machine.
        operation = await _create(stub, num_steps=200)
        watching = asyncio.create_task(_watch(trainer))
        await _until(stub, 3)
        with pytest.raises(grpc.RpcError) as caught:
            await stub.ResumeRun(service_pb2.ResumeRunRequest(name="runs/r"), timeout=WAIT_S)
        assert isinstance(error_from_rpc(caught.value), FailedPreconditionError)
        paused = await stub.PauseRun(service_pb2.PauseRunRequest(name="runs/r"), timeout=WAIT_S)
        assert paused.state == messages_pb2.RUN_STATE_PAUSED
        assert trainer.living_ranks() == set()
        await stub.ResumeRun(service_pb2.ResumeRunRequest(name="runs/r"), timeout=WAIT_S)
        steps, run = await watching
        assert steps == list(range(1, 201))
        assert run.state == messages_pb2.RUN_STATE_SUCCEEDED
        assert (run.attempt, run.step, run.peak_memory_bytes) == (2, 200, 2001)
        async with aio_channel(f"127.0.0.1:{trainer.port}", token=TOKEN) as connection:
            operations = operations_pb2_grpc.OperationsStub(connection)
            done = await operations.WaitOperation(
                operations_pb2.WaitOperationRequest(name=operation.name), timeout=WAIT_S
            )
            assert done.done
            evaluation = await stub.EvaluateCheckpoint(
                service_pb2.EvaluateCheckpointRequest(checkpoint="runs/r", num_tokens=16), timeout=WAIT_S
            )
            async with asyncio.timeout(WAIT_S):
                while not evaluation.done:
                    evaluation = await operations.WaitOperation(
                        operations_pb2.WaitOperationRequest(name=evaluation.name), timeout=WAIT_S
                    )
        result = messages_pb2.Evaluation()
        assert evaluation.response.Unpack(result), evaluation
        assert (result.step, result.tokens, list(result.l0_by_layer)) == (200, 16, [1.0, 2.0])
        listed = await stub.ListCheckpoints(service_pb2.ListCheckpointsRequest(run="runs/r"), timeout=WAIT_S)
        assert listed.checkpoints[0].name == "runs/r/checkpoints/200"


async def test_trainer_killed_in_the_middle_adopts_its_ranks(trainer: Trainer) -> None:
    """Ranks outlive kill -9 of the controller, go on, and are taken up again: one attempt, no step lost or doubled."""
    async with trainer.client() as stub:
        await _create(stub, num_steps=120)
        watching = asyncio.create_task(_watch(trainer))
        await _until(stub, 5)
    before = trainer.living_ranks()
    assert len(before) == 2
    trainer.kill()
    await asyncio.sleep(1.0)
    assert trainer.living_ranks() == before
    trainer.start()
    steps, run = await watching
    assert steps == list(range(1, 121))
    assert (run.state, run.attempt) == (messages_pb2.RUN_STATE_SUCCEEDED, 1)
    assert {int(path.name) for path in trainer.pids.iterdir()} == before


async def test_trainer_that_is_told_to_stop_takes_its_ranks_along(trainer: Trainer) -> None:
    """SIGTERM stops the ranks, who save; the next start goes on from there as attempt 2."""
    async with trainer.client() as stub:
        await _create(stub, num_steps=200)
        await _until(stub, 3)
    assert trainer.terminate() == 0
    assert trainer.living_ranks() == set()
    trainer.start()
    steps, run = await _watch(trainer)
    assert steps == list(range(1, 201))
    assert (run.state, run.attempt) == (messages_pb2.RUN_STATE_SUCCEEDED, 2)


async def test_rank_killed_by_a_signal_is_followed_by_another_attempt(trainer: Trainer) -> None:
    """The next attempt starts from the newest checkpoint, and the reason is on record."""
    async with trainer.client() as stub:
        await _create(stub, num_steps=20, seed=7)
        steps, run = await _watch(trainer)
        assert steps == list(range(1, 21))
        assert (run.state, run.attempt) == (messages_pb2.RUN_STATE_SUCCEEDED, 2)
        assert "killed by signal 9; going on from step 5" in " ".join(entry.reason for entry in run.transitions)
        request = service_pb2.GetRunLogsRequest(name="runs/r", attempt=1, max_bytes=2000)
        logs = await stub.GetRunLogs(request, timeout=WAIT_S)
        assert (logs.attempt, [log.source for log in logs.logs]) == (1, ["ranks"])
        assert "exitcode: -9" in logs.logs[0].text
        assert len(logs.logs[0].text.encode()) <= 2000


async def test_ranks_report_to_a_trainer_that_has_tls(tmp_path: Path) -> None:
    """Service, cache and ranks all speak TLS, mutual at that, by one set of files."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    files = {name: tmp_path / f"{name}.pem" for name in ("ca", "cert", "key")}
    authority.cert_pem.write_to_path(files["ca"])
    issued.cert_chain_pems[0].write_to_path(files["cert"])
    issued.private_key_pem.write_to_path(files["key"])
    settings = ServiceSettings(
        insecure_no_auth=True, tls_cert=files["cert"], tls_key=files["key"], tls_client_ca=files["ca"]
    )
    async with _beside_a_cache(tmp_path, settings) as running:
        own = {f"PEERS_TLS_{name.upper()}": path for name, path in files.items()}
        own |= {"TLS_CERT": files["cert"], "TLS_KEY": files["key"], "TLS_CLIENT_CA": files["ca"]}
        running.environment |= {f"WEFT_TRAINER_{name}": str(path) for name, path in own.items()}
        running.tls = {f"tls_{name}": path for name, path in files.items()}
        running.start()
        async with running.client() as stub:
            await _create(stub, num_steps=5)
            steps, run = await _watch(running)
        assert (steps, run.state) == ([1, 2, 3, 4, 5], messages_pb2.RUN_STATE_SUCCEEDED)


async def test_refused_configuration_fails_with_the_ranks_reason(trainer: Trainer) -> None:
    """Exit code 42 of a rank comes through torchrun."""
    async with trainer.client() as stub:
        await _create(stub, seed=42)
        _, run = await _watch(trainer)
        assert (run.state, run.attempt) == (messages_pb2.RUN_STATE_FAILED, 1)
        assert run.error_message == "the stand-in refuses seed 42"


async def test_cancelled_run_leaves_no_rank(trainer: Trainer) -> None:
    """CancelRun, and cancelling the operation, both end the ranks for good."""
    async with trainer.client() as stub:
        operation = await _create(stub)
        await _until(stub, 2)
        async with aio_channel(f"127.0.0.1:{trainer.port}", token=TOKEN) as connection:
            operations = operations_pb2_grpc.OperationsStub(connection)
            await operations.CancelOperation(operations_pb2.CancelOperationRequest(name=operation.name), timeout=WAIT_S)
        _, run = await _watch(trainer)
        assert run.state == messages_pb2.RUN_STATE_CANCELLED
        assert trainer.living_ranks() == set()


async def test_a_runs_token_opens_nothing_else_and_no_other_does_its_work(trainer: Trainer) -> None:
    """The service refuses a run's token, and the report port refuses the service's."""
    async with trainer.client() as stub:
        await _create(stub)
        await _until(stub, 1)
    report_port = (trainer.folder / "work" / "report-port").read_text()
    async with aio_channel(f"127.0.0.1:{report_port}", token=TOKEN) as connection:
        reports = service_pb2_grpc.RunReportServiceStub(connection)
        with pytest.raises(grpc.RpcError) as caught:
            await reports.Report(service_pb2.ReportRequest(run="runs/r", attempt=1), timeout=WAIT_S)
        assert isinstance(error_from_rpc(caught.value), UnauthenticatedError)
    ranks = [psutil.Process(pid).environ() for pid in trainer.living_ranks()]
    async with trainer.client(ranks[0]["WEFT_WORKER_TRAINER_TOKEN"]) as stub:
        with pytest.raises(grpc.RpcError) as caught:
            await _get(stub)
        assert isinstance(error_from_rpc(caught.value), UnauthenticatedError)
