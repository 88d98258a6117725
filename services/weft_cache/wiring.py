"""The cache service put together; `__main__` and tests serve what this gives."""

from datetime import UTC, datetime

from prometheus_client import CollectorRegistry

from weft.cache.v1 import service_pb2, service_pb2_grpc
from weft_cache.adapters.prometheus_counters import PrometheusCounters
from weft_cache.adapters.weft_shards import WeftShards
from weft_cache.core.catalog import Catalog
from weft_cache.core.commits import Commits
from weft_cache.core.ports import Clock
from weft_cache.core.reading import Reading
from weft_cache.core.sealing import Sealing
from weft_cache.core.snapshots import Snapshots
from weft_cache.servicer import CacheServicer
from weft_common.server import Registration
from weft_store import ObjectStore

SERVICE = "cache"


def utc_now() -> datetime:
    """The time."""
    return datetime.now(UTC)


def registration(
    store: ObjectStore, *, registry: CollectorRegistry, presign_s: int = 3600, clock: Clock = utc_now
) -> Registration:
    """The catalog over a bucket, ready to be served."""
    counters = PrometheusCounters(registry)
    shards = WeftShards(store)
    catalog = Catalog(store, clock)
    sealing = Sealing(catalog)
    snapshots = Snapshots(catalog, sealing)
    servicer = CacheServicer(
        catalog,
        Commits(catalog, shards, counters, presign_s=presign_s),
        sealing,
        snapshots,
        Reading(catalog, sealing, snapshots, shards, counters),
        presign_s=presign_s,
        answered=counters.answered,
    )
    return Registration(
        service_pb2.DESCRIPTOR.services_by_name["CacheService"].full_name,
        lambda server: service_pb2_grpc.add_CacheServiceServicer_to_server(servicer, server),
    )
