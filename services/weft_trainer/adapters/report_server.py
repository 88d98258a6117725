# ruff: noqa: N802  gRPC names the methods
"""
Where ranks report: RunReportService on a port of its own, for which the service's token is no key and a run's token is.

A run's token is derived from the service's, so that a controller that was started again still takes it.
"""

import hashlib
import hmac
from contextlib import suppress
from pathlib import Path

import grpc
import grpc.aio
from pydantic import SecretStr

from weft.training.v1 import service_pb2, service_pb2_grpc
from weft_common.errors import UnauthenticatedError, UnavailableError
from weft_common.interceptors import ErrorInterceptor
from weft_common.logging import get_logger
from weft_common.resource_names import parse_name
from weft_trainer import converting
from weft_trainer.core.reports import ReportDesk

__all__ = ["ReportServer", "RunReportServicer", "RunTokens"]

_log = get_logger(__name__)

Context = grpc.aio.ServicerContext[object, object]


class RunTokens:
    """
    Makes and checks the tokens of runs.

    Args:
        secret: The service's own token; without one nobody is asked.
    """

    def __init__(self, secret: SecretStr | None) -> None:
        self._secret = secret

    def token(self, run: str) -> str:
        """Return the token of a run's ranks; empty where nobody is asked for one."""
        if self._secret is None:
            return ""
        key = self._secret.get_secret_value().encode()
        return hmac.new(key, f"weft-run-report:{run}".encode(), hashlib.sha256).hexdigest()

    def check(self, run: str, authorization: str) -> None:
        """Raise UnauthenticatedError where this is not the run's token."""
        if self._secret is not None and not hmac.compare_digest(
            authorization.encode(), f"Bearer {self.token(run)}".encode()
        ):
            raise UnauthenticatedError(
                f"the token is not that of runs/{run}: ranks report with the token that they were started with."
            )


class RunReportServicer(service_pb2_grpc.RunReportServiceServicer):
    """Answers ranks."""

    def __init__(self, desk: ReportDesk, tokens: RunTokens) -> None:
        self._desk = desk
        self._tokens = tokens

    async def Report(self, request: service_pb2.ReportRequest, context: Context) -> service_pb2.ReportResponse:
        run = parse_name(request.run, "runs", field="run")
        given = dict(context.invocation_metadata() or ()).get("authorization", "")
        self._tokens.check(run, given if isinstance(given, str) else given.decode(errors="replace"))
        directive = await self._desk.take(converting.report_from_proto(run, request))
        return service_pb2.ReportResponse(directive=converting.directive_to_proto(directive))


class ReportServer:
    """
    Serves the reports of ranks on this machine.

    Args:
        servicer: Answers them.
        port: To listen on; 0 takes the one of the start before where it can be had, else any.
        port_file: Keeps the port for the next start, which ranks that still run go on reporting to.
    """

    def __init__(self, servicer: RunReportServicer, port: int, port_file: Path) -> None:
        self._wanted = port
        self._port_file = port_file
        self._server = grpc.aio.server(
            interceptors=[ErrorInterceptor()],
            options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 8 << 20)],
        )
        service_pb2_grpc.add_RunReportServiceServicer_to_server(servicer, self._server)
        self.target = ""

    async def start(self) -> None:
        """Listen and serve. UnavailableError: the port is taken."""
        port = self._bind()
        self.target = f"127.0.0.1:{port}"
        self._port_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._port_file.write_text(str(port))
        await self._server.start()
        _log.info("taking_reports", target=self.target)

    def _bind(self) -> int:
        if self._wanted == 0:
            with suppress(FileNotFoundError, ValueError, RuntimeError):
                return self._server.add_insecure_port(f"127.0.0.1:{int(self._port_file.read_text())}")
        try:
            return self._server.add_insecure_port(f"127.0.0.1:{self._wanted}")
        except RuntimeError as error:
            raise UnavailableError(
                f"port {self._wanted} cannot be had for the reports of ranks: "
                "set WEFT_TRAINER_REPORT_PORT to a free one."
            ) from error

    async def stop(self) -> None:
        """Stop serving."""
        await self._server.stop(1.0)
