"""TLS, mutual TLS and OpenTelemetry, each over real connections."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2

from weft_common.client import aio_channel, channel, error_from_rpc
from weft_common.errors import DeadlineExceededError, InvalidArgumentError, UnavailableError
from weft_common.server import serving

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An authority, a server's and a client's certificate of it, and a stranger's."""
    folder = tmp_path_factory.mktemp("tls")
    authority, stranger = trustme.CA(), trustme.CA()
    paths = {"ca": folder / "ca.pem", "stranger_ca": folder / "stranger_ca.pem"}
    authority.cert_pem.write_to_path(paths["ca"])
    stranger.cert_pem.write_to_path(paths["stranger_ca"])
    for name, issuer in (("server", authority), ("client", authority), ("stranger", stranger)):
        issued = issuer.issue_cert("127.0.0.1", "localhost")
        paths[f"{name}_cert"], paths[f"{name}_key"] = folder / f"{name}.pem", folder / f"{name}.key"
        issued.private_key_pem.write_to_path(paths[f"{name}_key"])
        for index, blob in enumerate(issued.cert_chain_pems):
            blob.write_to_path(paths[f"{name}_cert"], append=index > 0)
    return paths


async def refuses(kit: Any, plain: grpc.aio.Channel) -> None:
    """The connection is never made; a single attempt says so, where five would take seconds."""
    state = plain.get_state(try_to_connect=True)
    async with asyncio.timeout(10):
        while state is not grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            assert state is not grpc.ChannelConnectivity.READY
            await plain.wait_for_state_change(state)
            state = plain.get_state()
    with pytest.raises(grpc.RpcError) as caught:
        await kit.client(plain).call("unary", "x", timeout=0.3)
    assert isinstance(error_from_rpc(caught.value), UnavailableError | DeadlineExceededError)


async def test_tls_serves_those_who_trust_its_authority(kit: Any, echo: Any, files: dict[str, Path]) -> None:
    """Both kinds of channel speak TLS; plain text and another authority's trust do not get through."""
    tls = kit.settings(tls_cert=files["server_cert"], tls_key=files["server_key"])

    def blocking(target: str) -> bytes:
        with channel(target, token="secret", tls_ca=files["ca"]) as plain:
            call: Any = plain.unary_unary(f"/{kit.name}/Unary")
            return bytes(call(kit.text(value="x").SerializeToString()))

    async with serving("test", tls, [echo.registration()]) as server:
        async with aio_channel(server.target, token="secret", tls_ca=files["ca"]) as secure:
            assert await kit.client(secure).call("bidi_stream", "a", "b") == ["a", "b"]
        answer = await asyncio.to_thread(blocking, server.target)
        assert kit.text.FromString(answer).value == "x"
        for arguments in ({}, {"tls_ca": files["stranger_ca"]}, {"tls": True}):
            async with aio_channel(server.target, token="secret", **arguments) as refused:
                await refuses(kit, refused)


async def test_mutual_tls_asks_for_the_clients_certificate(kit: Any, echo: Any, files: dict[str, Path]) -> None:
    """Only a client with a certificate of the right authority is talked to."""
    mutual = kit.settings(tls_cert=files["server_cert"], tls_key=files["server_key"], tls_client_ca=files["ca"])

    def of(name: str) -> dict[str, Path]:
        return {"tls_cert": files[f"{name}_cert"], "tls_key": files[f"{name}_key"]}

    async with serving("test", mutual, [echo.registration()]) as server:
        async with aio_channel(server.target, token="secret", tls_ca=files["ca"], **of("client")) as known:
            assert await kit.client(known).call("unary", "x") == ["x"]
        for identity in ({}, of("stranger")):
            async with aio_channel(server.target, token="secret", tls_ca=files["ca"], **identity) as unknown:
                await refuses(kit, unknown)


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """An OTLP endpoint that keeps what it is sent."""

    def __init__(self) -> None:
        self.spans: list[trace_pb2.Span] = []
        self.services: set[str] = set()

    async def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 (as in the proto)
        for resource in request.resource_spans:
            attributes = {item.key: item.value.string_value for item in resource.resource.attributes}
            self.services.add(attributes["service.name"])
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return trace_service_pb2.ExportTraceServiceResponse()


async def test_spans_of_two_services_join_the_callers_trace(kit: Any, echo: Any) -> None:
    """Each served call is a span, children of one another across the wire, with the gRPC code of its end."""
    collector = Collector()
    sink = grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, sink)
    endpoint = f"http://127.0.0.1:{sink.add_insecure_port('127.0.0.1:0')}"
    await sink.start()
    other = type(echo)()

    async def refuse(text: str) -> str:
        raise InvalidArgumentError("no")

    async def outer(text: str) -> str:
        async with aio_channel(peer.target, token="secret") as to_peer:
            await kit.client(to_peer).call("unary", "inner")
        return text

    other.behave, echo.behave = refuse, outer
    traced = kit.settings(otlp_endpoint=endpoint)
    try:
        async with (
            serving("inner", traced, [other.registration()]) as peer,
            serving("outer", traced, [echo.registration()]) as server,
            aio_channel(server.target, token="secret") as plain,
        ):
            with pytest.raises(grpc.RpcError):
                await kit.client(plain).call("unary", "x", metadata=(("traceparent", f"00-{TRACE}-{PARENT}-01"),))
    finally:
        await sink.stop(None)
    assert collector.services == {"weft-inner", "weft-outer"}
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    first = next(span for span in collector.spans if span.parent_span_id.hex() == PARENT)
    second = next(span for span in collector.spans if span is not first)
    assert second.parent_span_id == first.span_id
    assert first.name == f"{kit.name}/Unary"
    codes = {item.value.int_value for item in second.attributes if item.key == "rpc.grpc.status_code"}
    assert codes == {grpc.StatusCode.INVALID_ARGUMENT.value[0]}


async def test_service_without_traces_passes_the_context_on(kit: Any, echo: Any) -> None:
    """Without an endpoint nothing is recorded, yet the caller's trace reaches the peer."""
    other = type(echo)()

    async def outer(text: str) -> str:
        async with aio_channel(peer.target, token="secret") as to_peer:
            return (await kit.client(to_peer).call("unary", text))[0]

    echo.behave = outer
    parent = f"00-{TRACE}-{PARENT}-01"
    async with (
        serving("inner", kit.settings(), [other.registration()]) as peer,
        serving("outer", kit.settings(), [echo.registration()]) as server,
        aio_channel(server.target, token="secret") as plain,
    ):
        await kit.client(plain).call("unary", "x", metadata=(("traceparent", parent),))
        assert other.metadata["traceparent"] == parent
        await kit.client(plain).call("unary", "x")
        assert "traceparent" not in other.metadata
