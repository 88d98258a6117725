"""
The gRPC server of every service: health, reflection, TLS, admission, metrics, drain, and the exit codes of a process.

    0 told to stop, and drained    1 failed    2 the settings are wrong    3 a port is taken
"""

import asyncio
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from weft_common.admission import Admission
from weft_common.certificates import watch_certificate
from weft_common.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, WeftError
from weft_common.interceptors import (
    AdmissionInterceptor,
    AuthInterceptor,
    ErrorInterceptor,
    MetricsInterceptor,
    TraceInterceptor,
    call_kind,
)
from weft_common.logging import configure_logging, get_logger
from weft_common.metrics import MetricsServer, set_build_info, show_method
from weft_common.settings import EXIT_BAD_SETTINGS, ServiceSettings, variable_name
from weft_common.tracing import Tracing

__all__ = [
    "EXIT_PORT_TAKEN",
    "PortTakenError",
    "Registration",
    "Server",
    "run_service",
    "server_credentials",
    "serving",
]

EXIT_FAILED = 1
EXIT_PORT_TAKEN = 3
_HEALTH_NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_LOG = get_logger(__name__)


class PortTakenError(FailedPreconditionError):
    """An address that cannot be listened on; says which setting to change."""

    reason = "PORT_TAKEN"


@dataclass(frozen=True)
class Registration:
    """One gRPC service of a server: its full name, and what adds its servicer."""

    full_name: str
    add: Callable[[grpc.aio.Server], None]


class _Services(grpc.GenericRpcHandler):
    """The handlers of a server that is running already, which takes none itself."""

    def __init__(self) -> None:
        self._handlers: list[grpc.GenericRpcHandler] = []

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        found = (handler.service(handler_call_details) for handler in self._handlers)
        return next((handler for handler in found if handler is not None), None)

    def as_server(self) -> grpc.aio.Server:
        """Return what generated code adds its handlers to."""
        return cast(grpc.aio.Server, self)

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        self._handlers.extend(generic_rpc_handlers)

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Any]) -> None:
        """Generated code names methods a second time: the generic handlers have them, the metrics get them here."""
        for method, handler in method_handlers.items():
            show_method(call_kind(handler), service_name, method)


class Server:
    """
    A server that listens at once and serves once its services are there.

    Between `start` and `serve`, and again from `drain` on, health says NOT_SERVING; calls that come too early are
    answered UNAVAILABLE, which clients retry.

    Args:
        name: The service's.
        settings: Its own.
        standby: Set while this replica waits for its turn behind another that serves: /readyz then says ready, so that
            whoever keeps count of ready replicas counts it, though health still says NOT_SERVING.
    """

    def __init__(self, name: str, settings: ServiceSettings, standby: threading.Event | None = None) -> None:
        self.name = name
        self.settings = settings
        self._standby = standby or threading.Event()
        self.port = 0
        self.metrics_port = 0
        self.admission = Admission(settings.max_inflight_bytes, settings.max_concurrent_rpcs)
        self.tracing = Tracing(name, settings.otlp_endpoint)
        self._gate = AdmissionInterceptor(self.admission, settings.max_call_s)
        self._health = health.aio.HealthServicer()
        self._metrics: MetricsServer | None = None
        self._services = _Services()
        self._grpc: grpc.aio.Server | None = None

    @property
    def target(self) -> str:
        """Where clients on this machine connect to."""
        host = self.settings.host
        return f"{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{self.port}"  # noqa: S104

    async def start(self) -> None:
        """
        Listen.

        Raises:
            PortTakenError: One of the two ports cannot be had.
        """
        settings = self.settings
        try:
            self._metrics = MetricsServer(settings.host, settings.metrics_port, self._is_ready)
        except OSError as error:
            raise self._taken("metrics_port", error) from None
        self.metrics_port = self._metrics.port
        self._probe_port()
        self._grpc = grpc.aio.server(
            handlers=[self._services],
            interceptors=[
                TraceInterceptor(self.tracing),
                MetricsInterceptor(),
                AuthInterceptor(settings.token.get_secret_value() if settings.token else None),
                ErrorInterceptor(),
                self._gate,
            ],
            options=_options(settings),
            # A hard stop above the admission's own limit, which leaves room for health checks.
            maximum_concurrent_rpcs=settings.max_concurrent_rpcs + 64,
        )
        self.port = self._bind(self._grpc)
        await self._health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._services.as_server())
        await self._grpc.start()
        set_build_info(self.name)
        _LOG.info("listening", host=settings.host, port=self.port, metrics_port=self.metrics_port)
        if settings.insecure_no_auth and settings.host not in ("127.0.0.1", "::1", "localhost"):
            _LOG.warning("anybody who reaches this address may call", host=settings.host)

    async def serve(self, registrations: Sequence[Registration]) -> None:
        """Add the services and say SERVING."""
        names = [registration.full_name for registration in registrations]
        for registration in registrations:
            registration.add(self._services.as_server())
        reflected = reflection.aio.ReflectionServicer([*names, _HEALTH_NAME, reflection.SERVICE_NAME])
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflected, self._services.as_server())
        self._gate.ready = True
        for name in ("", *names):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        _LOG.info("serving", services=names)

    async def drain(self, grace_s: float | None = None) -> None:
        """Say NOT_SERVING, take no new calls, and give open ones `drain_s` to end; then cancel them."""
        self._gate.ready = False
        self._standby.clear()
        await self._health.enter_graceful_shutdown()
        if self._grpc is not None:
            await self._grpc.stop(self.settings.drain_s if grace_s is None else grace_s)

    async def close(self) -> None:
        """Free the ports and send the last traces."""
        await self.drain(0)
        if self._metrics is not None:
            await asyncio.to_thread(self._metrics.close)
            self._metrics = None
        await asyncio.to_thread(self.tracing.close)

    def _is_ready(self) -> bool:
        return self._gate.ready or self._standby.is_set()

    def _probe_port(self) -> None:
        """Ask the system for the port first: gRPC reports a failed bind without its reason."""
        settings = self.settings
        if not settings.port:
            return
        try:
            family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((settings.host, settings.port))
        except OSError as error:
            raise self._taken("port", error) from None

    def _bind(self, server: grpc.aio.Server) -> int:
        settings = self.settings
        address = f"[{settings.host}]:{settings.port}" if ":" in settings.host else f"{settings.host}:{settings.port}"
        try:
            if settings.tls_cert is None or settings.tls_key is None:
                return server.add_insecure_port(address)
            return server.add_secure_port(address, server_credentials(settings))
        except RuntimeError as error:
            raise self._taken("port", error) from None

    def _taken(self, field: str, error: Exception) -> PortTakenError:
        settings = type(self.settings)
        host, port = self.settings.host, getattr(self.settings, field)
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return PortTakenError(
            f"{self.name} cannot listen on {host}:{port} ({reason}); set {variable_name(settings, field)} to a free "
            f"port (0 finds one) or {variable_name(settings, 'host')} to an address of this machine, "
            "or stop the process that has it"
        )


@asynccontextmanager
async def serving(name: str, settings: ServiceSettings, registrations: Sequence[Registration]) -> AsyncIterator[Server]:
    """Serve in this process for as long as the context lasts; for tests and for embedding."""
    server = Server(name, settings)
    try:
        await server.start()
        await server.serve(registrations)
        yield server
    finally:
        await server.close()


def run_service(
    name: str,
    settings: ServiceSettings,
    build: Callable[[], AbstractAsyncContextManager[Sequence[Registration]]],
    standby: threading.Event | None = None,
) -> None:
    """
    Serve until SIGTERM or SIGINT, drain, and return; the whole of a service's `__main__` after its settings.

    Args:
        name: The service's: "cache".
        settings: Read by `load_settings`.
        build: Opens what the service needs and gives its registrations; closed after the drain. Until it is entered,
            health says NOT_SERVING.
        standby: As `Server` has it, for services of which one replica serves at a time.

    Raises:
        SystemExit: With 1, 2 or 3, as the module says.
    """
    configure_logging(name, settings.log_level, settings.log_format)
    code = asyncio.run(_run(name, settings, build, standby))
    if code:
        raise SystemExit(code)


async def _run(
    name: str,
    settings: ServiceSettings,
    build: Callable[[], AbstractAsyncContextManager[Sequence[Registration]]],
    standby: threading.Event | None,
) -> int:
    server = Server(name, settings, standby)
    server.tracing.make_global()
    stop = _StopSignals(server)
    try:
        with stop:
            await server.start()
            async with build() as registrations:
                await server.serve(registrations)
                stop.interrupts_start = False
                await stop.asked.wait()
                _LOG.info("draining", drain_s=settings.drain_s)
                await server.drain()
        _LOG.info("stopped")
        return 0
    except asyncio.CancelledError:
        if not stop.asked.is_set():
            raise
        _LOG.info("stopped before it had started")
        return 0
    except PortTakenError as error:
        return _refused(name, error, EXIT_PORT_TAKEN)
    except (FailedPreconditionError, InvalidArgumentError, NotFoundError) as error:
        return _refused(name, error, EXIT_BAD_SETTINGS)
    except WeftError as error:
        return _refused(name, error, EXIT_FAILED)
    except Exception as error:
        _LOG.critical("the service fails", exc_info=error)
        return EXIT_FAILED
    finally:
        await server.close()


class _StopSignals:
    """SIGTERM and SIGINT: the first asks for a drain, or ends a start; the second ends the drain."""

    def __init__(self, server: Server) -> None:
        self.asked = asyncio.Event()
        self.interrupts_start = True
        self._server = server
        self._hurry: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()

    def __enter__(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_signal)

    def __exit__(self, *exc: object) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.remove_signal_handler(number)

    def _on_signal(self) -> None:
        if self.asked.is_set():
            self._hurry = self._loop.create_task(self._server.drain(0))
        elif self.interrupts_start and self._task is not None:
            self.asked.set()
            self._task.cancel()
        else:
            self.asked.set()


def _refused(name: str, error: WeftError, code: int) -> int:
    _LOG.error("cannot serve", message=error.message)
    sys.stderr.write(f"{name}: {error.message}\n")
    return code


def server_credentials(settings: ServiceSettings) -> grpc.ServerCredentials:
    """Return what a port of a service that has TLS is opened with."""
    assert settings.tls_cert is not None
    assert settings.tls_key is not None
    watch_certificate(settings.tls_cert)
    authority = settings.tls_client_ca.read_bytes() if settings.tls_client_ca else None
    return grpc.ssl_server_credentials(
        [(settings.tls_key.read_bytes(), settings.tls_cert.read_bytes())],
        root_certificates=authority,
        require_client_auth=authority is not None,
    )


def _options(settings: ServiceSettings) -> list[tuple[str, Any]]:
    return [
        # Two servers on one port would each get half of the calls.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.max_connection_age_ms", settings.max_connection_age_s * 1000),
        ("grpc.max_connection_age_grace_ms", 600_000),
    ]
