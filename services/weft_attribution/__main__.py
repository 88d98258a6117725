"""Starts the attribution service: reads its settings, wires its parts, serves."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import torch

from weft.attribution.v1 import service_pb2, service_pb2_grpc
from weft.features.v1 import service_pb2 as features_pb2
from weft.features.v1 import service_pb2_grpc as features_pb2_grpc
from weft_attribution.adapters.grpc_activations import GrpcModelRunner
from weft_attribution.adapters.prometheus_stages import PrometheusStages
from weft_attribution.core.graphs import Graphs, ModelFolder
from weft_attribution.features_servicer import FeatureServicer
from weft_attribution.servicer import KIND, AttributionServicer, GraphWork
from weft_attribution.settings import AttributionSettings
from weft_common.client import aio_channel
from weft_common.metrics import REGISTRY
from weft_common.operations import OperationManager
from weft_common.operations_servicer import operations_registration
from weft_common.server import Registration, run_service
from weft_common.settings import load_settings
from weft_store.opening import open_store
from weft_store.operations import ObjectOperationStore


@asynccontextmanager
async def build(settings: AttributionSettings) -> AsyncIterator[Sequence[Registration]]:
    """Wire the service for as long as the context lasts."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    access_key, secret_key = settings.bucket_access_key, settings.bucket_secret_key
    store = open_store(
        settings.bucket_url,
        access_key.get_secret_value() if access_key else None,
        secret_key.get_secret_value() if secret_key else None,
    )
    channel = aio_channel(
        settings.activations_target, token=settings.activations_token, tls_ca=settings.activations_tls_ca
    )
    async with channel:
        runner = GrpcModelRunner(
            channel, max_capture_bytes=settings.max_capture_bytes, timeout_s=settings.activations_timeout_s
        )
        models = ModelFolder(settings.models_dir)
        graphs = Graphs(
            store,
            runner,
            models,
            max_prompt_tokens=settings.max_prompt_tokens,
            max_features=settings.max_features,
        )
        work = GraphWork(graphs, PrometheusStages(REGISTRY))
        manager = OperationManager("attribution", ObjectOperationStore(store, "attribution"), {KIND: work.kind()})
        attribution = AttributionServicer(graphs, manager)
        features = FeatureServicer(store, runner, models)
        async with manager.run():
            yield [
                Registration(
                    service_pb2.DESCRIPTOR.services_by_name["AttributionService"].full_name,
                    lambda server: service_pb2_grpc.add_AttributionServiceServicer_to_server(attribution, server),
                ),
                Registration(
                    features_pb2.DESCRIPTOR.services_by_name["FeatureService"].full_name,
                    lambda server: features_pb2_grpc.add_FeatureServiceServicer_to_server(features, server),
                ),
                operations_registration(manager),
            ]


def main() -> None:
    """Serve until told to stop."""
    settings = load_settings(AttributionSettings)
    run_service("attribution", settings, lambda: build(settings))


if __name__ == "__main__":
    main()
