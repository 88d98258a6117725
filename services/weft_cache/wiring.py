"""The cache service put together; `__main__` and tests serve what this gives."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry

from weft.cache.v1 import service_pb2, service_pb2_grpc
from weft_cache.adapters.bucket_holders import BucketHolders
from weft_cache.adapters.prometheus_counters import PrometheusCounters
from weft_cache.adapters.weft_shards import WeftShards
from weft_cache.core.catalog import Catalog
from weft_cache.core.commits import Commits
from weft_cache.core.deletion import Deletion
from weft_cache.core.garbage import Garbage
from weft_cache.core.holds import Holds
from weft_cache.core.ports import Clock
from weft_cache.core.reading import Reading
from weft_cache.core.sealing import Sealing
from weft_cache.core.snapshots import Snapshots
from weft_cache.servicer import CacheServicer
from weft_cache.work import COLLECT, VERIFY, collection, verification
from weft_common.operations import OperationManager
from weft_common.operations_servicer import operations_registration
from weft_common.server import Registration
from weft_store import ObjectStore
from weft_store.operations import ObjectOperationStore

SERVICE = "cache"


def utc_now() -> datetime:
    """The time."""
    return datetime.now(UTC)


def registration(
    store: ObjectStore, *, registry: CollectorRegistry, presign_s: int = 3600, clock: Clock = utc_now
) -> Registration:
    """The catalog over a bucket, ready to be served; long work that it is asked for waits for a replica that works."""
    return _wired(store, registry, presign_s, clock)[0]


@asynccontextmanager
async def registrations(
    store: ObjectStore, *, registry: CollectorRegistry, presign_s: int = 3600, clock: Clock = utc_now
) -> AsyncIterator[Sequence[Registration]]:
    """The catalog and its operations; long work is done for as long as the context lasts."""
    served, operations = _wired(store, registry, presign_s, clock)
    async with operations.run():
        yield [served, operations_registration(operations)]


def _wired(
    store: ObjectStore, registry: CollectorRegistry, presign_s: int, clock: Clock
) -> tuple[Registration, OperationManager]:
    counters = PrometheusCounters(registry)
    shards = WeftShards(store)
    catalog = Catalog(store, clock)
    sealing = Sealing(catalog)
    snapshots = Snapshots(catalog, sealing)
    reading = Reading(catalog, sealing, snapshots, shards, counters)
    holds = Holds(catalog, BucketHolders(store))
    deletion = Deletion(catalog, holds)
    kinds = {VERIFY: verification(reading), COLLECT: collection(Garbage(catalog, holds, deletion))}
    operations = OperationManager(SERVICE, ObjectOperationStore(store, SERVICE), kinds)
    servicer = CacheServicer(
        catalog,
        Commits(catalog, shards, counters, presign_s=presign_s),
        sealing,
        snapshots,
        reading,
        holds,
        deletion,
        operations,
        presign_s=presign_s,
        answered=counters.answered,
    )
    served = Registration(
        service_pb2.DESCRIPTOR.services_by_name["CacheService"].full_name,
        lambda server: service_pb2_grpc.add_CacheServiceServicer_to_server(servicer, server),
    )
    return served, operations
