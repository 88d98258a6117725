"""Where ranks report, over real connections: TLS as the service has it, and whose token opens it."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import trustme
from fake_ranks import Controller
from pydantic import SecretStr

from weft.training.v1 import service_pb2, service_pb2_grpc
from weft_common.client import aio_channel, error_from_rpc
from weft_common.errors import UnauthenticatedError, UnavailableError
from weft_common.server import server_credentials
from weft_common.settings import ServiceSettings
from weft_trainer.adapters.report_server import ReportServer, RunReportServicer, RunTokens


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """An authority and a certificate of it."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    paths = {name: tmp_path / f"{name}.pem" for name in ("ca", "cert", "key")}
    authority.cert_pem.write_to_path(paths["ca"])
    issued.cert_chain_pems[0].write_to_path(paths["cert"])
    issued.private_key_pem.write_to_path(paths["key"])
    return paths


@pytest.fixture
async def controller() -> AsyncIterator[Controller]:
    """A controller whose run has ranks."""
    made = Controller()
    await made.create()
    supervising = made.supervise()
    await made.ranks(1)
    yield made
    supervising.cancel()


def _server(controller: Controller, folder: Path, tls: dict[str, Path] | None, host: str = "127.0.0.1") -> ReportServer:
    settings = ServiceSettings(token=SecretStr("t"), **({} if tls is None else tls))  # type: ignore[arg-type]
    credentials = server_credentials(settings) if tls else None
    tokens = RunTokens(settings.token, SecretStr("of-all-ranks"))
    servicer = RunReportServicer(controller.desk, controller.epochs, tokens)
    return ReportServer(servicer, host, 0, folder / "port", credentials)


async def _report(channel: grpc.aio.Channel) -> "service_pb2.Directive.ValueType":
    stub = service_pb2_grpc.RunReportServiceStub(channel)
    try:
        answer = await stub.Report(service_pb2.ReportRequest(run="runs/r", attempt=1), timeout=10)
    except grpc.RpcError as error:
        raise error_from_rpc(error) from error
    return answer.directive


async def test_reports_of_all_ranks_carry_one_token(controller: Controller, tmp_path: Path) -> None:
    """The shared token opens the port on every address; another does not."""
    server = _server(controller, tmp_path, None, host="0.0.0.0")
    await server.start()
    try:
        assert server.target.startswith("127.0.0.1:")
        async with aio_channel(server.target, token="of-all-ranks") as channel:
            assert await _report(channel) == service_pb2.DIRECTIVE_CONTINUE
        for wrong in (None, "t", "of-all-ranks-"):
            async with aio_channel(server.target, token=wrong) as channel:
                with pytest.raises(UnauthenticatedError):
                    await _report(channel)
    finally:
        await server.stop()


async def test_reports_are_encrypted_where_the_service_is(
    controller: Controller, files: dict[str, Path], tmp_path: Path
) -> None:
    """With mutual TLS a rank needs the files of its Secret; a connection in the clear comes to nothing."""
    tls = {"tls_cert": files["cert"], "tls_key": files["key"], "tls_client_ca": files["ca"]}
    server = _server(controller, tmp_path, tls)
    await server.start()
    own = {"tls_ca": files["ca"], "tls_cert": files["cert"], "tls_key": files["key"]}
    try:
        async with aio_channel(server.target, token="of-all-ranks", **own) as channel:
            assert await _report(channel) == service_pb2.DIRECTIVE_CONTINUE
        async with aio_channel(server.target, token="of-all-ranks") as channel:
            with pytest.raises(UnavailableError):
                await _report(channel)
    finally:
        await server.stop()
