"""Starts the cache service: reads the settings, wires, serves."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from weft_cache.settings import CacheSettings
from weft_cache.wiring import SERVICE, registrations
from weft_common.metrics import REGISTRY
from weft_common.server import Registration, run_service
from weft_common.settings import load_settings
from weft_store import open_bucket


def main() -> None:
    """Serve until told to stop."""
    settings = load_settings(CacheSettings)

    @asynccontextmanager
    async def build() -> AsyncIterator[Sequence[Registration]]:
        store = open_bucket(settings)
        async with registrations(store, registry=REGISTRY, presign_s=settings.presign_s) as served:
            yield served

    run_service(SERVICE, settings, build)


if __name__ == "__main__":
    main()
