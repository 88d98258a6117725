"""The services that the console speaks with, as stubs over their channels."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
from google.longrunning.operations_pb2_grpc import OperationsStub
from pydantic import SecretStr

from weft.activations.v1.service_pb2_grpc import ActivationServiceStub
from weft.attribution.v1.service_pb2_grpc import AttributionServiceStub
from weft.cache.v1.service_pb2_grpc import CacheServiceStub
from weft.features.v1.jobs_pb2_grpc import FeatureJobServiceStub
from weft.features.v1.labels_pb2_grpc import LabelServiceStub
from weft.features.v1.service_pb2_grpc import FeatureServiceStub
from weft.training.v1.service_pb2_grpc import TrainingServiceStub
from weft_common.client import aio_channel
from weft_console.settings import ConsoleSettings

if TYPE_CHECKING:
    # The generated stubs speak both flavours of gRPC; only the type checker sees this one by name.
    from weft.activations.v1.service_pb2_grpc import ActivationServiceAsyncStub
    from weft.attribution.v1.service_pb2_grpc import AttributionServiceAsyncStub
    from weft.cache.v1.service_pb2_grpc import CacheServiceAsyncStub
    from weft.features.v1.jobs_pb2_grpc import FeatureJobServiceAsyncStub
    from weft.features.v1.labels_pb2_grpc import LabelServiceAsyncStub
    from weft.features.v1.service_pb2_grpc import FeatureServiceAsyncStub
    from weft.training.v1.service_pb2_grpc import TrainingServiceAsyncStub

__all__ = ["STREAM_S", "Peers", "open_peers"]

# Interventions and pruning run a model or read a whole graph.
_SLOW = 10
# A live stream is renewed once a day; the browser comes back by itself.
STREAM_S = 86_400.0


@dataclass(frozen=True)
class Peers:
    """Stubs of the other services, None where one is not known; `slow_s` is the deadline of calls that compute."""

    cache: CacheServiceAsyncStub
    training: TrainingServiceAsyncStub
    attribution: AttributionServiceAsyncStub
    attribution_operations: OperationsStub
    features: FeatureServiceAsyncStub
    labels: LabelServiceAsyncStub
    jobs: FeatureJobServiceAsyncStub
    activations: ActivationServiceAsyncStub | None
    slow_s: float


@asynccontextmanager
async def open_peers(settings: ConsoleSettings) -> AsyncIterator[Peers]:
    """Open the channels; none waits for its service, so that the page comes up whatever else is down."""
    async with AsyncExitStack() as stack:

        async def open_channel(target: str, token: SecretStr | None, max_bytes: int) -> grpc.aio.Channel:
            channel = aio_channel(
                target,
                token=token,
                **settings.peers_tls,
                max_message_bytes=max_bytes,
                default_timeout_s=settings.call_timeout_s,
            )
            return await stack.enter_async_context(channel)

        usual = settings.max_message_bytes
        cache = await open_channel(settings.cache_target, settings.cache_token, usual)
        trainer = await open_channel(settings.trainer_target, settings.trainer_token, usual)
        attribution = await open_channel(
            settings.attribution_target, settings.attribution_token, settings.max_graph_bytes
        )
        activations = None
        if settings.activations_target:
            activations = ActivationServiceStub(
                await open_channel(settings.activations_target, settings.activations_token, usual)
            )
        yield Peers(
            cache=CacheServiceStub(cache),
            training=TrainingServiceStub(trainer),
            attribution=AttributionServiceStub(attribution),
            attribution_operations=OperationsStub(attribution),
            features=FeatureServiceStub(attribution),
            labels=LabelServiceStub(attribution),
            jobs=FeatureJobServiceStub(attribution),
            activations=activations,
            slow_s=_SLOW * settings.call_timeout_s,
        )
