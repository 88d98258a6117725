"""
Runs the console: binds the ports, serves until SIGTERM or SIGINT, drains.

    0 told to stop, and drained    1 failed    2 the settings are wrong    3 a port is taken
"""

import asyncio
import contextlib
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import uvicorn

from weft_common.certificates import watch_certificate
from weft_common.errors import FailedPreconditionError, InvalidArgumentError, WeftError
from weft_common.logging import configure_logging, get_logger
from weft_common.metrics import MetricsServer, set_build_info
from weft_common.server import EXIT_PORT_TAKEN, PortTakenError
from weft_common.settings import EXIT_BAD_SETTINGS, variable_name
from weft_common.tracing import Tracing
from weft_console.app import build_app, check_page
from weft_console.peers import open_peers
from weft_console.settings import ConsoleSettings

__all__ = ["Console", "run_console", "serving_console"]

_LOG = get_logger(__name__)


class _Server(uvicorn.Server):
    """uvicorn that says when it listens, without handlers of its own for signals: they would become the exit status."""

    def __init__(self, config: uvicorn.Config, listening: asyncio.Event) -> None:
        super().__init__(config)
        self._listening = listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Console:
    """A console that listens: `port` and `metrics_port` are the ones it got."""

    def __init__(self, settings: ConsoleSettings) -> None:
        self.settings = settings
        self.stopping = asyncio.Event()
        self.listening = asyncio.Event()
        self._server: _Server | None = None
        if settings.tls_cert is not None:
            watch_certificate(settings.tls_cert)
        self._socket = _bind(settings)
        self.port: int = self._socket.getsockname()[1]
        try:
            self._metrics = MetricsServer(settings.host, settings.metrics_port, lambda: self.is_ready)
        except OSError as error:
            self._socket.close()
            raise _taken(settings, "metrics_port", error) from None
        self.metrics_port = self._metrics.port

    @property
    def is_ready(self) -> bool:
        """Whether it takes requests."""
        return self.listening.is_set() and not self.stopping.is_set()

    @property
    def url(self) -> str:
        """Where a browser on this machine finds the page."""
        host = self.settings.host
        shown = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host  # noqa: S104
        return f"{'https' if self.settings.tls_cert else 'http'}://{shown}:{self.port}/"

    def stop(self) -> None:
        """Take no new requests and let open ones end; at the second call, let them go."""
        if self._server is not None:
            self._server.force_exit = self.stopping.is_set()
            self._server.should_exit = True
        self.stopping.set()

    async def serve(self) -> None:
        """Serve until stopped."""
        settings = self.settings
        async with open_peers(settings) as peers:
            config = uvicorn.Config(
                build_app(settings, peers, self.stopping),
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=max(1, round(settings.drain_s)),
                ssl_certfile=settings.tls_cert,
                ssl_keyfile=settings.tls_key,
                ssl_ca_certs=str(settings.tls_client_ca) if settings.tls_client_ca else None,
                ssl_cert_reqs=ssl.CERT_REQUIRED if settings.tls_client_ca else ssl.CERT_NONE,
            )
            self._server = _Server(config, self.listening)
            if self.stopping.is_set():
                return
            _LOG.info("listening", host=settings.host, port=self.port, metrics_port=self.metrics_port, url=self.url)
            await self._server.serve(sockets=[self._socket])

    async def close(self) -> None:
        """Free the ports."""
        self._socket.close()
        await asyncio.to_thread(self._metrics.close)


@asynccontextmanager
async def serving_console(settings: ConsoleSettings) -> AsyncIterator[Console]:
    """Serve in this process for as long as the context lasts; for tests and for embedding."""
    check_page(settings.static_dir)
    console = Console(settings)
    task = asyncio.create_task(console.serve())
    ready = asyncio.create_task(console.listening.wait())
    try:
        await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
        yield console
    finally:
        ready.cancel()
        console.stop()
        await task
        await console.close()


def run_console(settings: ConsoleSettings) -> None:
    """
    Serve until SIGTERM or SIGINT.

    Raises:
        SystemExit: With 2 or 3, as the module says.
    """
    configure_logging("console", settings.log_level, settings.log_format)
    set_build_info("console")
    code = asyncio.run(_run(settings))
    if code:
        raise SystemExit(code)


async def _run(settings: ConsoleSettings) -> int:
    tracing = Tracing("console", settings.otlp_endpoint)
    tracing.make_global()
    try:
        check_page(settings.static_dir)
        console = Console(settings)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, console.stop)
        try:
            await console.serve()
        finally:
            await console.close()
    except PortTakenError as error:
        return _refused(error, EXIT_PORT_TAKEN)
    except (FailedPreconditionError, InvalidArgumentError) as error:
        return _refused(error, EXIT_BAD_SETTINGS)
    finally:
        await asyncio.to_thread(tracing.close)
    _LOG.info("stopped")
    return 0


def _bind(settings: ConsoleSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise _taken(settings, "port", error) from None
    return listener


def _taken(settings: ConsoleSettings, field: str, error: OSError) -> PortTakenError:
    cls = type(settings)
    return PortTakenError(
        f"console cannot listen on {settings.host}:{getattr(settings, field)} ({error.strerror}); set "
        f"{variable_name(cls, field)} to a free port (0 finds one) or {variable_name(cls, 'host')} to an address of "
        "this machine, or stop the process that has it"
    )


def _refused(error: WeftError, code: int) -> int:
    _LOG.error("cannot serve", message=error.message)
    sys.stderr.write(f"console: {error.message}\n")
    return code
