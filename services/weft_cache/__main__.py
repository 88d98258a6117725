"""Starts the cache service: reads the settings, wires, serves."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from weft_cache.settings import CacheSettings
from weft_cache.wiring import SERVICE, registration
from weft_common.metrics import REGISTRY
from weft_common.server import Registration, run_service
from weft_common.settings import load_settings
from weft_store import open_store


def main() -> None:
    """Serve until told to stop."""
    settings = load_settings(CacheSettings)

    @asynccontextmanager
    async def build() -> AsyncIterator[Sequence[Registration]]:
        access_key, secret_key = settings.bucket_access_key, settings.bucket_secret_key
        store = open_store(
            settings.bucket_url,
            access_key.get_secret_value() if access_key else None,
            secret_key.get_secret_value() if secret_key else None,
            ca=settings.bucket_ca,
        )
        yield [registration(store, registry=REGISTRY, presign_s=settings.presign_s)]

    run_service(SERVICE, settings, build)


if __name__ == "__main__":
    main()
