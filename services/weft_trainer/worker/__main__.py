"""One rank: reads its settings, joins the others, and trains or evaluates."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack

from weft_common.errors import FailedPreconditionError
from weft_common.logging import configure_logging, get_logger
from weft_common.settings import load_settings
from weft_store import open_bucket
from weft_store.kept import KeptReads
from weft_store.port import RangedReads
from weft_trainer.core.scratch import ScratchFolder
from weft_trainer.worker.exporting import export_metrics
from weft_trainer.worker.rendezvous import join, rank_and_world
from weft_trainer.worker.settings import RankSettings
from weft_trainer.worker.signals import StopFlag, exit_when_terminated
from weft_trainer.worker.starting import exit_code, prepare_process, read_config


def main() -> int:
    """Run one rank to its end and return its exit code."""
    exit_when_terminated()
    settings = load_settings(RankSettings)
    configure_logging("trainer-worker", settings.log_level)
    export_metrics(settings.metrics_port)
    prepare_process(os.environ, settings.threads)

    import torch
    import torch.distributed as dist

    from weft.cache.v1 import service_pb2_grpc as cache_grpc
    from weft.training.v1 import service_pb2_grpc as training_grpc
    from weft_clt.loader import LoaderOptions
    from weft_clt.mesh import make_mesh
    from weft_common.client import channel
    from weft_trainer.worker.epochs import RankEpochs
    from weft_trainer.worker.processor import check_alike, choose_device, peak_device_bytes
    from weft_trainer.worker.rank import Rank
    from weft_trainer.worker.reads import get_dataset, normalization_of
    from weft_trainer.worker.reports import Reporter, peak_memory_bytes
    from weft_trainer.worker.watchdog import Watchdog

    stop = StopFlag()
    torch.set_num_threads(settings.threads)
    rank, world_size = rank_and_world(os.environ)
    trainer = None
    if settings.mode == "train" and settings.trainer_target:
        trainer = training_grpc.RunReportServiceStub(
            channel(settings.trainer_target, token=settings.trainer_token, **settings.tls)
        )
    reporter = Reporter(trainer, run=settings.run, attempt=settings.attempt, rank=rank)

    def give_up(message: str) -> None:
        """End at once: the main thread is in a collective that nothing ends."""
        get_logger(__name__).error("rank_hangs", details=message)
        reporter.failed(message)
        reporter.close(5.0)
        os._exit(1)

    def work() -> None:
        store = open_bucket(settings)
        config, document = read_config(store, settings.run)
        epochs = RankEpochs(
            store, trainer, run=settings.run, attempt=settings.attempt, document=document, retry_s=settings.retry_s
        )
        cache = cache_grpc.CacheServiceStub(channel(settings.cache_target, token=settings.cache_token, **settings.tls))
        dataset = get_dataset(cache, config.batch.dataset, epochs.first)
        config.check_shape(dataset.spec.num_layers, dataset.spec.d_model)
        if config.mesh.world_size != world_size:
            raise FailedPreconditionError(
                f"The run wants {config.mesh.world_size} ranks, {world_size} were started; start as many as it wants."
            )
        device = choose_device(settings.device, os.environ)
        ending.callback(lambda: ended.update(peak_device_bytes=peak_device_bytes(device)))
        notes = join(rank, world_size, settings.rendezvous_s, stop, gpus=device.type == "cuda")
        mesh = make_mesh(config.mesh.feature_ranks, config.mesh.data_ranks)
        if notes is not None:
            watchdog = Watchdog(
                notes, mesh.progress, rank=rank, world_size=world_size, bound_s=settings.hang_s, give_up=give_up
            )
            watchdog.start()
            ending.callback(watchdog.stop)
        check_alike(mesh, device)
        shards: RangedReads = store
        if settings.kept_read_bytes:
            folder = ending.enter_context(ScratchFolder())
            shards = KeptReads(store, folder.path, settings.kept_read_bytes)
        own = Rank(
            store,
            cache,
            reporter,
            mesh,
            config,
            normalization_of(dataset, config.batch.scales),
            epochs,
            stop,
            device=device,
            run=settings.run,
            attempt=settings.attempt,
            loading=LoaderOptions(
                num_streams=settings.mixed_row_groups,
                ahead_bytes=settings.read_ahead_bytes,
                read_threads=settings.read_threads,
            ),
            keep_checkpoints=settings.keep_checkpoints,
            retry_s=settings.retry_s,
            shards=shards,
        )
        if settings.mode == "evaluate":
            own.evaluate(settings.checkpoint_step, settings.evaluation_tokens)
        else:
            own.train()

    ended: dict[str, int] = {}
    with ExitStack() as ending:
        code = exit_code(work, reporter.failed)
    get_logger(__name__).info("ended", exit_code=code, peak_memory_bytes=peak_memory_bytes(), **ended)
    reporter.close(60.0 if code == 0 else 15.0)
    if dist.is_initialized():
        dist.destroy_process_group()
    return code


if __name__ == "__main__":
    sys.exit(main())
