"""Starts the attribution service: reads its settings, wires its parts, serves."""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import torch

from weft_attribution.adapters.grpc_activations import GrpcModelRunner
from weft_attribution.adapters.grpc_dataset_holds import GrpcDatasetHolds
from weft_attribution.adapters.grpc_sequences import GrpcSequences
from weft_attribution.adapters.openai_interpreter import openai_interpreter
from weft_attribution.adapters.prometheus_interpretation import PrometheusInterpretation
from weft_attribution.adapters.prometheus_stages import PrometheusStages
from weft_attribution.core.ports import DatasetHolds
from weft_attribution.interpretation_requests import Interpreting
from weft_attribution.settings import AttributionSettings
from weft_attribution.wiring import SERVICE, registrations
from weft_common.client import aio_channel
from weft_common.metrics import REGISTRY
from weft_common.server import Registration, run_service
from weft_common.settings import load_settings
from weft_store import open_bucket


def main() -> None:
    """Serve until told to stop."""
    settings = load_settings(AttributionSettings)
    # The sweep is shared out by batches: threads inside of torch would only wait for each other.
    torch.set_num_threads(1)
    workers = settings.threads or min(16, len(os.sched_getaffinity(0)))

    @asynccontextmanager
    async def build() -> AsyncIterator[Sequence[Registration]]:
        store = open_bucket(settings)
        async with (
            aio_channel(settings.activations_target, token=settings.activations_token, **settings.peers_tls) as channel,
            _interpreting(settings) as interpreting,
            _holds(settings) as holds,
        ):
            runner = GrpcModelRunner(
                channel, max_capture_bytes=settings.max_capture_bytes, timeout_s=settings.activations_timeout_s
            )
            async with registrations(
                store,
                runner,
                settings.models_dir,
                GrpcSequences(channel, timeout_s=settings.activations_timeout_s),
                max_prompt_tokens=settings.max_prompt_tokens,
                max_features=settings.max_features,
                memory_bytes=settings.memory_bytes,
                export_scratch_bytes=settings.export_scratch_bytes,
                workers=workers,
                lease_s=settings.lease_s,
                shared_rows=settings.shared_rows,
                max_message_bytes=settings.max_message_bytes,
                max_waiting=settings.max_waiting_graphs,
                observe=PrometheusStages(REGISTRY),
                interpreting=interpreting,
                holds=holds,
            ) as served:
                yield served

    run_service(SERVICE, settings, build)


@asynccontextmanager
async def _holds(settings: AttributionSettings) -> AsyncIterator[DatasetHolds | None]:
    """The cache, where it is named."""
    if not settings.cache_target:
        yield None
        return
    async with aio_channel(settings.cache_target, token=settings.cache_token, **settings.peers_tls) as channel:
        yield GrpcDatasetHolds(channel)


@asynccontextmanager
async def _interpreting(settings: AttributionSettings) -> AsyncIterator[Interpreting | None]:
    """Who labels features, where somebody is set up."""
    if settings.interpreter_url is None:
        yield None
        return
    key = "" if settings.interpreter_key is None else settings.interpreter_key.get_secret_value()
    async with openai_interpreter(
        settings.interpreter_url,
        key,
        timeout_s=settings.interpreter_timeout_s,
        limit=settings.interpreter_limit_field,
    ) as interpreter:
        yield Interpreting(
            interpreter,
            endpoint=settings.interpreter_url,
            model=settings.interpreter_model,
            embedding_model=settings.interpreter_embedding_model,
            structured=settings.interpreter_structured,
            concurrency=settings.interpreter_concurrency,
            max_attempts=settings.interpreter_attempts,
            observe=PrometheusInterpretation(REGISTRY),
            explain_tokens=settings.interpreter_explain_tokens,
            score_tokens=settings.interpreter_score_tokens,
            is_greedy=settings.interpreter_greedy,
        )


if __name__ == "__main__":
    main()
