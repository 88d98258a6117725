"""
How much work a server takes on at once: so many bytes of requests, so many calls; what is more is refused.

Refusing early, with the time after which to come again, keeps a busy server's memory bounded and its answers prompt.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from weft_common.errors import ResourceExhaustedError
from weft_common.metrics import ADMISSION_LIMIT, INFLIGHT_BYTES, OPEN_RPCS, REJECTED

__all__ = ["RETRY_AFTER_S", "Admission"]

RETRY_AFTER_S = 1.0


class Admission:
    """Counts what is in flight; used from one event loop."""

    def __init__(self, max_inflight_bytes: int, max_concurrent_rpcs: int) -> None:
        self._max_bytes = max_inflight_bytes
        self._max_rpcs = max_concurrent_rpcs
        self.inflight_bytes = 0
        self.open_rpcs = 0
        for resource, limit in (("inflight_bytes", max_inflight_bytes), ("concurrent_rpcs", max_concurrent_rpcs)):
            ADMISSION_LIMIT.labels(resource).set(limit)
            REJECTED.labels(resource)

    @contextmanager
    def call(self) -> Iterator[None]:
        """
        Keep one call open.

        Raises:
            ResourceExhaustedError: As many as allowed are open.
        """
        if self.open_rpcs >= self._max_rpcs:
            REJECTED.labels("concurrent_rpcs").inc()
            raise ResourceExhaustedError(
                f"{self.open_rpcs} calls are open, as many as this service takes at once; "
                f"ask again after {RETRY_AFTER_S:g} s, or raise max_concurrent_rpcs",
                retry_after_s=RETRY_AFTER_S,
            )
        self.open_rpcs += 1
        OPEN_RPCS.inc()
        try:
            yield
        finally:
            self.open_rpcs -= 1
            OPEN_RPCS.dec()

    @contextmanager
    def hold(self, num_bytes: int) -> Iterator[None]:
        """
        Keep the bytes of one request in flight.

        Raises:
            ResourceExhaustedError: They do not fit beside those that are.
        """
        if self.inflight_bytes + num_bytes > self._max_bytes:
            REJECTED.labels("inflight_bytes").inc()
            raise ResourceExhaustedError(
                f"a request of {num_bytes} bytes does not fit beside {self.inflight_bytes} bytes in flight; this "
                f"service takes {self._max_bytes} at once; ask again after {RETRY_AFTER_S:g} s, "
                "or raise max_inflight_bytes",
                retry_after_s=RETRY_AFTER_S,
            )
        self.inflight_bytes += num_bytes
        INFLIGHT_BYTES.inc(num_bytes)
        try:
            yield
        finally:
            self.inflight_bytes -= num_bytes
            INFLIGHT_BYTES.dec(num_bytes)
