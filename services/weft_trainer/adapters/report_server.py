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

from weft.training.v1 import messages_pb2, service_pb2, service_pb2_grpc
from weft_common.errors import UnauthenticatedError, UnavailableError
from weft_common.interceptors import ErrorInterceptor
from weft_common.logging import get_logger
from weft_common.resource_names import parse_name
from weft_trainer import converting
from weft_trainer.core.epochs import RunEpochs
from weft_trainer.core.reports import ReportDesk

__all__ = ["ReportServer", "RunReportServicer", "RunTokens"]

_log = get_logger(__name__)

Context = grpc.aio.ServicerContext[object, object]


class RunTokens:
    """
    Makes and checks the tokens of runs.

    Args:
        secret: The service's own token; without one, and without a shared one, nobody is asked.
        shared: One token for all ranks, where they cannot be handed one each.
    """

    def __init__(self, secret: SecretStr | None, shared: SecretStr | None = None) -> None:
        self._secret = secret
        self._shared = shared

    def token(self, run: str) -> str:
        """Return the token of a run's ranks; empty where nobody is asked for one."""
        if self._shared is not None:
            return self._shared.get_secret_value()
        if self._secret is None:
            return ""
        key = self._secret.get_secret_value().encode()
        return hmac.new(key, f"weft-run-report:{run}".encode(), hashlib.sha256).hexdigest()

    def check(self, run: str, authorization: str) -> None:
        """Raise UnauthenticatedError where this is not the run's token."""
        expected = self.token(run)
        if expected and not hmac.compare_digest(authorization.encode(), f"Bearer {expected}".encode()):
            raise UnauthenticatedError(
                f"the token is not that of runs/{run}: ranks report with the token that they were started with."
            )


class RunReportServicer(service_pb2_grpc.RunReportServiceServicer):
    """Answers ranks."""

    def __init__(self, desk: ReportDesk, epochs: RunEpochs, tokens: RunTokens) -> None:
        self._desk = desk
        self._epochs = epochs
        self._tokens = tokens

    def _run(self, name: str, context: Context) -> str:
        """Return the id of the run whose rank calls. InvalidArgumentError, UnauthenticatedError."""
        run = parse_name(name, "runs", field="run")
        given = dict(context.invocation_metadata() or ()).get("authorization", "")
        self._tokens.check(run, given if isinstance(given, str) else given.decode(errors="replace"))
        return run

    async def BeginEpoch(self, request: service_pb2.BeginEpochRequest, context: Context) -> messages_pb2.Epoch:
        run = self._run(request.run, context)
        return converting.epoch_to_proto(await self._epochs.begin(run, request.attempt, request.epoch))

    async def Report(self, request: service_pb2.ReportRequest, context: Context) -> service_pb2.ReportResponse:
        run = self._run(request.run, context)
        directive = await self._desk.take(converting.report_from_proto(run, request))
        return service_pb2.ReportResponse(directive=converting.directive_to_proto(directive))


class ReportServer:
    """
    Serves the reports of ranks.

    Args:
        servicer: Answers them.
        host: To listen on.
        port: To listen on; 0 takes the one of the start before where it can be had, else any.
        port_file: Keeps the port for the next start, which ranks that still run go on reporting to.
        credentials: For TLS; without them reports come in the clear.
    """

    def __init__(
        self,
        servicer: RunReportServicer,
        host: str,
        port: int,
        port_file: Path,
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        self._host = host
        self._wanted = port
        self._credentials = credentials
        self._port_file = port_file
        self._server = grpc.aio.server(
            interceptors=[ErrorInterceptor()],
            options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 8 << 20)],
        )
        service_pb2_grpc.add_RunReportServiceServicer_to_server(servicer, self._server)
        self.target = ""

    async def start(self) -> None:
        """Listen and serve; ranks on this machine find it at `target`. UnavailableError: the port is taken."""
        port = self._bind()
        everywhere = self._host in ("0.0.0.0", "::")  # noqa: S104  told by the settings
        self.target = f"{'127.0.0.1' if everywhere else self._host}:{port}"
        self._port_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._port_file.write_text(str(port))
        await self._server.start()
        _log.info("taking_reports", target=self.target)

    def _bind(self) -> int:
        if self._wanted == 0:
            with suppress(FileNotFoundError, ValueError, RuntimeError):
                return self._listen(int(self._port_file.read_text()))
        try:
            return self._listen(self._wanted)
        except RuntimeError as error:
            raise UnavailableError(
                f"port {self._wanted} cannot be had for the reports of ranks: "
                "set WEFT_TRAINER_REPORT_PORT to a free one."
            ) from error

    def _listen(self, port: int) -> int:
        address = f"[{self._host}]:{port}" if ":" in self._host else f"{self._host}:{port}"
        if self._credentials is None:
            return self._server.add_insecure_port(address)
        return self._server.add_secure_port(address, self._credentials)

    async def stop(self) -> None:
        """Stop serving."""
        await self._server.stop(1.0)
