"""What export and replacement have in common: one process that works on a checkpoint, from its settings to its end."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from weft_common.logging import configure_logging
from weft_common.settings import load_settings
from weft_store import open_bucket
from weft_trainer.worker.settings import WorkerSettings
from weft_trainer.worker.signals import exit_when_terminated
from weft_trainer.worker.starting import exit_code, prepare_process, read_config

if TYPE_CHECKING:
    from weft.cache.v1 import messages_pb2, service_pb2_grpc
    from weft_store import ObjectStore

__all__ = ["run_checkpoint_job"]

S = TypeVar("S", bound=WorkerSettings)


def run_checkpoint_job(
    kind: type[S],
    name: str,
    job: Callable[[ObjectStore, S, messages_pb2.Dataset, service_pb2_grpc.CacheServiceStub], None],
) -> int:
    """
    Read the settings, open the bucket and the cache, do the job, and return the exit code.

    Args:
        kind: Settings of the job.
        name: Of the process, for its log.
        job: Takes the bucket, the settings, the run's dataset, or its first snapshot, and the cache.
    """
    exit_when_terminated()
    settings = load_settings(kind)
    configure_logging(name, settings.log_level)
    prepare_process(os.environ, settings.threads)

    def work() -> None:
        import torch

        from weft.cache.v1 import service_pb2_grpc
        from weft_common.client import channel
        from weft_trainer.worker.epochs import first_snapshot
        from weft_trainer.worker.reads import get_dataset

        torch.set_num_threads(settings.threads)
        store = open_bucket(settings)
        cache = service_pb2_grpc.CacheServiceStub(
            channel(settings.cache_target, token=settings.cache_token, **settings.tls)
        )
        config, document = read_config(store, settings.run)
        job(store, settings, get_dataset(cache, config.batch.dataset, first_snapshot(document)), cache)

    return exit_code(work, lambda message: None)
