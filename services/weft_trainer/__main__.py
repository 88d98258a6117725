"""The trainer service: `python -m weft_trainer`."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from google.longrunning import operations_pb2, operations_pb2_grpc

from weft.training.v1 import service_pb2, service_pb2_grpc
from weft_common.client import aio_channel
from weft_common.operations import OperationKind, OperationManager, RetryPolicy
from weft_common.operations_servicer import OperationsServicer
from weft_common.server import Registration, run_service, server_credentials
from weft_common.settings import load_settings
from weft_store import ObjectOperationStore, open_bucket
from weft_trainer import converting
from weft_trainer.adapters.grpc_catalog import GrpcCatalog
from weft_trainer.adapters.prometheus_gauges import PrometheusGauges
from weft_trainer.adapters.report_server import ReportServer, RunReportServicer, RunTokens
from weft_trainer.core.census import count_runs
from weft_trainer.core.commands import RunCommands
from weft_trainer.core.epochs import RunEpochs
from weft_trainer.core.format_jobs import FormatJobs
from weft_trainer.core.job_running import JobRunner
from weft_trainer.core.jobs import CheckpointJobs
from weft_trainer.core.journal import Journal
from weft_trainer.core.logs import RunLogs
from weft_trainer.core.ports import DatasetCatalog, RankLauncher
from weft_trainer.core.reports import ReportDesk
from weft_trainer.core.runs import RunRepository
from weft_trainer.core.scratch import remove_stale
from weft_trainer.core.signals import Signals
from weft_trainer.core.supervisor import RunSupervisor, SupervisorOptions
from weft_trainer.core.transcoder_transfer import TranscoderTransfer
from weft_trainer.core.transcoders import Transcoders
from weft_trainer.core.watch import Watcher
from weft_trainer.launching import open_launcher
from weft_trainer.operations import CONVERT, EVALUATE, EXPORT, IMPORT, TRAIN, Handlers
from weft_trainer.rank_environment import RankEnvironment
from weft_trainer.servicer import TrainingServicer
from weft_trainer.settings import TrainerSettings

__all__ = ["build", "main"]

_LEASE_S = 5.0
# A run lives for weeks: neither a bucket that is away for a while nor many restarts end it.
_RETRY = RetryPolicy(max_failures=100, max_claims=1000)


@asynccontextmanager
async def build(
    settings: TrainerSettings,
    worker_module: str = "weft_trainer.worker",
    standby: threading.Event | None = None,
) -> AsyncIterator[Sequence[Registration]]:
    """
    Open all that the service needs, in the order in which it is closed again backwards.

    Args:
        settings: Of the trainer.
        worker_module: What a rank runs.
        standby: Set while another replica leads.
    """
    async with AsyncExitStack() as stack:
        launcher = await stack.enter_async_context(open_launcher(settings, standby or threading.Event()))
        cache = await stack.enter_async_context(
            aio_channel(settings.cache_target, token=settings.cache_token, **settings.peers_tls)
        )
        yield await stack.enter_async_context(_services(settings, launcher, GrpcCatalog(cache), worker_module))


@asynccontextmanager
async def _services(
    settings: TrainerSettings, launcher: RankLauncher, catalog: DatasetCatalog, worker_module: str
) -> AsyncIterator[Sequence[Registration]]:
    remove_stale()
    store = open_bucket(settings)
    runs, signals, gauges, journal = RunRepository(store), Signals(), PrometheusGauges(), Journal(store)
    desk = ReportDesk(store, runs, journal, signals, gauges)
    epochs = RunEpochs(runs, catalog)
    tokens = RunTokens(settings.token, settings.report_token)
    reports = ReportServer(
        RunReportServicer(desk, epochs, tokens),
        settings.report_host,
        settings.report_port,
        settings.resolved_work_dir() / "report-port",
        server_credentials(settings) if settings.tls_cert else None,
    )
    environment = RankEnvironment(settings, lambda: reports.target, tokens.token)
    options = SupervisorOptions(stop_grace_s=settings.stop_grace_s, worker_module=worker_module)
    supervisor = RunSupervisor(store, runs, launcher, desk, signals, gauges, epochs, environment, options)
    runner = JobRunner(launcher, store)
    # A pod of an evaluation has a GPU of its own; processes of this machine would take the training's.
    on_this_machine = settings.launcher == "local"
    jobs = CheckpointJobs(store, runs, runner, environment, worker_module, spares_gpus=on_this_machine)
    transcoders = Transcoders(store)
    formats = FormatJobs(store, transcoders, runner, environment, worker_module)
    operation_store = ObjectOperationStore(store, "trainer")
    handlers = Handlers(runs, supervisor, jobs, formats, catalog)
    manager = OperationManager(
        "trainer",
        operation_store,
        {
            TRAIN: OperationKind(handlers.train, given_up=handlers.give_up),
            EVALUATE: OperationKind(handlers.evaluate),
            EXPORT: OperationKind(handlers.export),
            IMPORT: OperationKind(handlers.take_in),
            CONVERT: OperationKind(handlers.write_out),
        },
        lease_s=_LEASE_S,
        retry=_RETRY,
    )

    async def start_training(operation_id: str, run: str) -> str:
        metadata = converting.metadata_to_proto(await runs.get(run))
        request = service_pb2.GetRunRequest(name=f"runs/{run}")
        return str((await manager.start(TRAIN, operation_id, request, metadata)).name)

    async with AsyncExitStack() as stack:
        commands = RunCommands(runs, catalog, signals, start_training, settings.max_ranks, supervisor.check)
        await reports.start()
        stack.push_async_callback(reports.stop)
        await commands.start_unstarted()
        await stack.enter_async_context(manager.run())
        census = asyncio.create_task(count_runs(runs, gauges))
        stack.push_async_callback(_cancelled, census)
        watcher = Watcher(store, runs, journal, signals)
        logs = RunLogs(store, runs, launcher)
        transfer = TranscoderTransfer(store, settings.max_upload_bytes)
        servicer = TrainingServicer(runs, commands, watcher, jobs, logs, transcoders, formats, transfer, manager)
        yield [
            Registration(
                service_pb2.DESCRIPTOR.services_by_name["TrainingService"].full_name,
                lambda server: service_pb2_grpc.add_TrainingServiceServicer_to_server(servicer, server),
            ),
            Registration(
                operations_pb2.DESCRIPTOR.services_by_name["Operations"].full_name,
                lambda server: operations_pb2_grpc.add_OperationsServicer_to_server(
                    OperationsServicer(manager), server
                ),
            ),
        ]


async def _cancelled(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def main() -> None:
    """Serve until told to stop."""
    settings = load_settings(TrainerSettings)
    standby = threading.Event()
    run_service("trainer", settings, lambda: build(settings, standby=standby), standby)


if __name__ == "__main__":
    main()
