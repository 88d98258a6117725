"""
Prometheus metrics: one registry a process, the gRPC metrics of every server, and a port of their own.

A service adds its metrics beside these: `Counter("weft_extract_tokens_total", "...", registry=REGISTRY)`. No label is
ever a request or a user: those are without bound. Counters that an alert looks at show 0 from the start: Prometheus
cannot see the first increase of a series that was not there before.

The same port answers /livez (this process runs) and /readyz (it takes calls), for probes that speak no gRPC or have
no certificate.
"""

import platform
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, GCCollector, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder

__all__ = [
    "ADMISSION_LIMIT",
    "BUILD_INFO",
    "HANDLED",
    "HANDLING_SECONDS",
    "INFLIGHT_BYTES",
    "OPEN_RPCS",
    "OPERATIONS",
    "OPERATIONS_ENDED",
    "OPERATION_AGE_SECONDS",
    "REGISTRY",
    "REJECTED",
    "STARTED",
    "TLS_CERTIFICATE_EXPIRY",
    "MetricsServer",
    "set_build_info",
    "show_method",
]

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
GCCollector(registry=REGISTRY)

_RPC = ("grpc_type", "grpc_service", "grpc_method")
STARTED = Counter("grpc_server_started_total", "Calls begun.", _RPC, registry=REGISTRY)
HANDLED = Counter("grpc_server_handled_total", "Calls ended, by code.", (*_RPC, "grpc_code"), registry=REGISTRY)
HANDLING_SECONDS = Histogram(
    "grpc_server_handling_seconds",
    "Seconds from a call's beginning to its end.",
    _RPC,
    buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60, 300),
    registry=REGISTRY,
)
INFLIGHT_BYTES = Gauge("weft_inflight_bytes", "Bytes of requests being worked on.", registry=REGISTRY)
OPEN_RPCS = Gauge("weft_open_rpcs", "Calls being answered, health checks left out.", registry=REGISTRY)
ADMISSION_LIMIT = Gauge(
    "weft_admission_limit",
    "Most that is taken on at once: bytes of requests, or calls.",
    ("resource",),
    registry=REGISTRY,
)
REJECTED = Counter("weft_rejected_total", "Calls refused at a limit, by limit.", ("reason",), registry=REGISTRY)
OPERATION_AGE_SECONDS = Gauge(
    "weft_operation_age_seconds", "Age of the oldest unfinished operation; 0 without one.", ("kind",), registry=REGISTRY
)
OPERATIONS = Gauge(
    "weft_operations",
    "Unfinished operations: waiting for a replica, worked on here, or worked on elsewhere.",
    ("kind", "state"),
    registry=REGISTRY,
)
OPERATIONS_ENDED = Counter(
    "weft_operations_ended_total",
    "Operations whose end this replica wrote, by gRPC code.",
    ("kind", "result"),
    registry=REGISTRY,
)
# Labelled, so that it is not there at all without TLS: an unlabelled gauge would say 1970.
TLS_CERTIFICATE_EXPIRY = Gauge(
    "weft_tls_certificate_expiry_timestamp_seconds",
    "When the first certificate of the served chain expires, since 1970; not there without TLS.",
    ("certificate",),
    registry=REGISTRY,
)
BUILD_INFO = Gauge(
    "weft_build_info", "Always 1; what runs here.", ("component", "version", "python"), registry=REGISTRY
)


def set_build_info(component: str) -> None:
    """Say in weft_build_info which service this process is."""
    BUILD_INFO.labels(component, version("weft"), platform.python_version()).set(1)


def show_method(kind: str, service: str, method: str) -> None:
    """Show a method's figures before its first call, so that Prometheus sees that one too."""
    STARTED.labels(kind, service, method)
    HANDLED.labels(kind, service, method, "OK")
    HANDLING_SECONDS.labels(kind, service, method)


class MetricsServer:
    """
    Answers /metrics, /livez and /readyz over HTTP from a thread of its own.

    Args:
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        is_ready: Whether the service takes calls now.

    Raises:
        OSError: The port cannot be had.
    """

    def __init__(self, host: str, port: int, is_ready: Callable[[], bool]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path == "/metrics":
                    encode, content_type = choose_encoder(self.headers.get("Accept", ""))
                    self._answer(HTTPStatus.OK, encode(REGISTRY), content_type)
                elif path == "/livez":
                    self._answer(HTTPStatus.OK, b"alive\n")
                elif path == "/readyz":
                    ready = is_ready()
                    status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
                    self._answer(status, b"ready\n" if ready else b"not ready\n")
                else:
                    self._answer(HTTPStatus.NOT_FOUND, b"there are /metrics, /livez and /readyz here\n")

            def _answer(self, status: HTTPStatus, body: bytes, content_type: str = "text/plain") -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Scrapes are not logged."""

        self._server = ThreadingHTTPServer((host, port), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
