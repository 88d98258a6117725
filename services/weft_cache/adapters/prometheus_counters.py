"""What the cache counts, as Prometheus metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge

from weft_common.errors import Code


class PrometheusCounters:
    """Counts of this process since it started."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "weft_cache_requests", "Requests by the gRPC code of their answer.", ["result"], registry=registry
        )
        self._bytes = Counter(
            "weft_cache_bytes",
            "Bytes read from the bucket (in) and sent to clients (out), by what for.",
            ["direction", "stage"],
            registry=registry,
        )
        for code in Code:
            self._requests.labels(code.name)
        for direction, stage in (("in", "commit"), ("in", "verify"), ("out", "read")):
            self._bytes.labels(direction, stage)
        self._corrupt = Counter(
            "weft_cache_corrupt", "Objects that were not what their record says.", registry=registry
        )
        self._ratio = Gauge(
            "weft_cache_compression_ratio",
            "Size in bfloat16 over stored size, of the shards committed through this process.",
            registry=registry,
        )
        self._stored_bytes = 0
        self._bfloat16_bytes = 0

    def answered(self, result: str) -> None:
        """A request was answered with this gRPC code."""
        self._requests.labels(result).inc()

    def moved(self, direction: str, stage: str, size_bytes: int) -> None:
        self._bytes.labels(direction, stage).inc(size_bytes)

    def corrupt(self) -> None:
        self._corrupt.inc()

    def committed(self, size_bytes: int, num_values: int) -> None:
        self._stored_bytes += size_bytes
        self._bfloat16_bytes += 2 * num_values
        self._ratio.set(self._bfloat16_bytes / self._stored_bytes)
