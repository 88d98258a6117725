"""Starts the activations service: reads the settings, wires, serves."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from weft_activations.adapters.grpc_catalog import GrpcCatalog
from weft_activations.backend_choice import opened_backend
from weft_activations.settings import ActivationsSettings
from weft_activations.wiring import SERVICE, registrations
from weft_common.client import aio_channel
from weft_common.server import Registration, run_service
from weft_common.settings import load_settings
from weft_store import open_bucket


def main() -> None:
    """Serve until told to stop."""
    settings = load_settings(ActivationsSettings)

    @asynccontextmanager
    async def build() -> AsyncIterator[Sequence[Registration]]:
        store = open_bucket(settings)
        channel = aio_channel(settings.cache_target, token=settings.cache_token, **settings.peers_tls)
        with opened_backend(settings) as backend:
            async with channel, registrations(settings, backend, store, GrpcCatalog(channel)) as served:
                yield served

    run_service(SERVICE, settings, build)


if __name__ == "__main__":
    main()
