"""The server around its handlers: health, identity, limits, time, drain."""

import asyncio
import json
import logging
import socket
import threading
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from weft_common.client import aio_channel, error_from_rpc
from weft_common.deadlines import remaining_s
from weft_common.errors import DeadlineExceededError, ResourceExhaustedError, UnavailableError
from weft_common.logging import configure_logging, current_request_id, get_logger
from weft_common.server import PortTakenError, Server, serving

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health(target: str, service: str = "") -> int:
    async with grpc.aio.insecure_channel(target) as plain:
        answer = await health_pb2_grpc.HealthStub(plain).Check(health_pb2.HealthCheckRequest(service=service))
        return int(answer.status)


async def test_health_needs_no_token_and_names_each_service(kit: Any, echo: Any) -> None:
    """A probe without a token is answered for the whole and for each service."""
    async with serving("test", kit.settings(), [echo.registration()]) as server:
        assert await health(server.target) == SERVING
        assert await health(server.target, kit.name) == SERVING


async def test_reflection_lists_the_services(kit: Any, echo: Any) -> None:
    """A generic client learns what is served here."""
    async with (
        serving("test", kit.settings(), [echo.registration()]) as server,
        aio_channel(server.target, token="secret") as plain,
    ):
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        stub = reflection_pb2_grpc.ServerReflectionStub(plain)
        answers = [answer async for answer in stub.ServerReflectionInfo(iter([request]))]
    names = {service.name for service in answers[0].list_services_response.service}
    assert {kit.name, "grpc.health.v1.Health"} <= names


async def test_until_served_calls_are_asked_to_come_again(kit: Any, echo: Any) -> None:
    """While a service starts it is NOT_SERVING, and a call made then succeeds once it is up, by retries."""
    server = Server("test", kit.settings())
    try:
        await server.start()
        assert await health(server.target) == NOT_SERVING
        assert (await kit.get(server, "/readyz"))[0] == 503
        async with aio_channel(server.target, token="secret") as plain:
            waiting = asyncio.create_task(kit.client(plain).call("unary", "x"))
            async with grpc.aio.insecure_channel(server.target) as without_retries:
                call: Any = without_retries.unary_unary(f"/{kit.name}/Unary")
                with pytest.raises(grpc.RpcError) as caught:
                    await call(b"", metadata=(("authorization", "Bearer secret"),))
            error = error_from_rpc(caught.value)
            assert isinstance(error, UnavailableError)
            assert error.retry_after_s == 1.0
            await server.serve([echo.registration()])
            assert await waiting == ["x"]
        assert await health(server.target) == SERVING
        assert (await kit.get(server, "/readyz"))[0] == 200
    finally:
        await server.close()


async def test_replica_that_stands_by_is_ready_but_does_not_serve(kit: Any) -> None:
    """Probes count it, calls are answered UNAVAILABLE and its health is NOT_SERVING; none of it outlives a drain."""
    standby = threading.Event()
    server = Server("test", kit.settings(), standby)
    try:
        await server.start()
        assert (await kit.get(server, "/readyz"))[0] == 503
        standby.set()
        assert (await kit.get(server, "/readyz"))[0] == 200
        assert await health(server.target) == NOT_SERVING
        async with grpc.aio.insecure_channel(server.target) as without_retries:
            call: Any = without_retries.unary_unary(f"/{kit.name}/Unary")
            with pytest.raises(grpc.RpcError) as caught:
                await call(b"", metadata=(("authorization", "Bearer secret"),))
        assert isinstance(error_from_rpc(caught.value), UnavailableError)
        await server.drain(0)
        assert (await kit.get(server, "/readyz"))[0] == 503
    finally:
        await server.close()


async def test_request_id_is_kept_bound_and_returned(kit: Any, echo: Any) -> None:
    """The caller's id is the handler's, the answer's, and that of calls to peers."""
    seen = []

    async def behave(text: str) -> str:
        seen.append(current_request_id())
        if text == "outer":
            async with aio_channel(server.target, token="secret") as to_peer:
                await kit.client(to_peer).call("unary", "inner")
        return text

    echo.behave = behave
    async with (
        serving("test", kit.settings(), [echo.registration()]) as server,
        aio_channel(server.target, token="secret") as plain,
    ):
        call = kit.client(plain).unary_call(kit.text(value="outer"), metadata=(("x-request-id", "id-1"),))
        await call
        trailing = dict(await call.trailing_metadata())
    assert seen == ["id-1", "id-1"]
    assert trailing["x-request-id"] == "id-1"


@pytest.mark.parametrize("bad", ["", "a b", "x" * 65, 'a"b'])
async def test_request_id_out_of_form_is_replaced(kit: Any, echo: Any, bad: str) -> None:
    """An id that could forge log lines is not taken over."""
    async with (
        serving("test", kit.settings(), [echo.registration()]) as server,
        aio_channel(server.target, token="secret") as plain,
    ):
        call = kit.client(plain).unary_call(kit.text(value="x"), metadata=(("x-request-id", bad),))
        await call
        given = dict(await call.trailing_metadata())["x-request-id"]
    assert len(given) == 32
    assert given != bad


async def test_logs_of_a_call_carry_its_request_id(kit: Any, echo: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Each line is JSON with the service, the request id and the method."""

    async def behave(text: str) -> str:
        get_logger("mine").info("worked", items=3)
        return text

    echo.behave = behave
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        configure_logging("test", "debug", "json")
        async with (
            serving("test", kit.settings(), [echo.registration()]) as server,
            aio_channel(server.target, token="secret") as plain,
        ):
            await kit.client(plain).call("unary", "x", metadata=(("x-request-id", "id-2"),))
            logging.getLogger("library").warning("from %s", "elsewhere")
    finally:
        root.handlers[:], root.level = handlers, level
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    (mine,) = [line for line in lines if line["event"] == "worked"]
    assert (mine["request_id"], mine["rpc"], mine["service"]) == ("id-2", f"/{kit.name}/Unary", "test")
    assert mine["items"] == 3
    assert any(line["event"] == "from elsewhere" and line["service"] == "test" for line in lines)
    assert "secret" not in json.dumps(lines)


async def test_bytes_in_flight_are_bounded(kit: Any, echo: Any) -> None:
    """A request that does not fit beside others is refused with a delay, and fits once they are done."""
    release = asyncio.Event()

    async def behave(text: str) -> str:
        await release.wait()
        return text[:1]

    echo.behave = behave
    bounded = kit.settings(max_message_bytes=64 << 10, max_inflight_bytes=100 << 10)
    big = "x" * (60 << 10)
    async with (
        serving("test", bounded, [echo.registration()]) as server,
        aio_channel(server.target, token="secret") as plain,
    ):
        client = kit.client(plain)
        first = asyncio.create_task(client.call("unary", big))
        await kit.until(lambda: echo.calls == 1)
        for kind in ("unary", "server_stream", "client_stream", "bidi_stream"):
            with pytest.raises(grpc.RpcError) as caught:
                await client.call(kind, big)
            error = error_from_rpc(caught.value)
            assert isinstance(error, ResourceExhaustedError)
            assert error.retry_after_s == 1.0
        metrics = (await kit.get(server, "/metrics"))[1]
        assert float(metrics.split("\nweft_inflight_bytes ")[1].split()[0]) >= 60 << 10
        assert 'weft_rejected_total{reason="inflight_bytes"}' in metrics
        small = asyncio.create_task(client.call("unary", "y"))
        await kit.until(lambda: echo.calls == 2)
        release.set()
        assert [await first, await small, await client.call("unary", big)] == [["x"], ["y"], ["x"]]
        assert server.admission.inflight_bytes == 0


async def test_open_calls_are_bounded_and_health_is_not(kit: Any, echo: Any) -> None:
    """One call too many is refused with RetryInfo; a probe still gets its answer."""
    release = asyncio.Event()

    async def behave(text: str) -> str:
        await release.wait()
        return text

    echo.behave = behave
    async with (
        serving("test", kit.settings(max_concurrent_rpcs=2), [echo.registration()]) as server,
        aio_channel(server.target, token="secret") as plain,
    ):
        client = kit.client(plain)
        held = [asyncio.create_task(client.call("unary", "x")) for _ in range(2)]
        await kit.until(lambda: echo.calls == 2)
        with pytest.raises(grpc.RpcError) as caught:
            await client.call("unary", "x")
        (raw,) = [value for key, value in caught.value.trailing_metadata() if key == "grpc-status-details-bin"]
        details = status_pb2.Status.FromString(raw).details
        assert any(detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in details)
        assert await health(server.target) == SERVING
        release.set()
        assert await asyncio.gather(*held) == [["x"], ["x"]]
        assert await client.call("unary", "y") == ["y"]
        assert server.admission.open_rpcs == 0


async def test_message_above_the_cap_is_refused(kit: Any, echo: Any) -> None:
    """A message larger than the setting never reaches the handler."""
    async with (
        serving("test", kit.settings(max_message_bytes=64 << 10), [echo.registration()]) as server,
        aio_channel(server.target, token="secret") as plain,
    ):
        with pytest.raises(grpc.RpcError) as caught:
            await kit.client(plain).call("unary", "x" * (65 << 10))
    assert isinstance(error_from_rpc(caught.value), ResourceExhaustedError)
    assert echo.calls == 0


@pytest.mark.parametrize("kind", ["unary", "server_stream", "client_stream", "bidi_stream", "writes"])
@pytest.mark.parametrize("how", ["deadline", "cancel"])
async def test_ended_call_cancels_its_work(kit: Any, echo: Any, kind: str, how: str) -> None:
    """An expired deadline or a caller that left stops the handler, and all that the call held is free again."""
    begun, stopped = asyncio.Event(), asyncio.Event()

    async def behave(text: str) -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return text

    echo.behave = behave
    async with (
        serving("test", kit.settings(), [echo.registration()]) as server,
        aio_channel(server.target, token="secret") as plain,
    ):
        await plain.channel_ready()
        calling = asyncio.create_task(kit.client(plain).call(kind, "x", timeout=1 if how == "deadline" else 30))
        async with asyncio.timeout(30):
            await begun.wait()
        if how == "cancel":
            calling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await calling
        else:
            with pytest.raises(grpc.RpcError) as caught:
                await calling
            assert isinstance(error_from_rpc(caught.value), DeadlineExceededError)
        async with asyncio.timeout(5):
            await stopped.wait()
        await kit.until(lambda: server.admission.open_rpcs == 0)
        assert server.admission.inflight_bytes == 0
        method = {"unary": "Unary", "writes": "Writes"}.get(kind, kind.title().replace("_", ""))
        code = "DEADLINE_EXCEEDED" if how == "deadline" else "CANCELLED"
        metrics = (await kit.get(server, "/metrics"))[1]
        assert f'grpc_server_handled_total{{grpc_code="{code}",grpc_method="{method}"' in metrics


async def test_call_without_deadline_gets_a_limit(kit: Any, echo: Any) -> None:
    """A call that set no deadline ends after `max_call_s`, with advice; one that set its own is not touched."""

    async def behave(text: str) -> str:
        await asyncio.sleep(0.4)
        return text

    echo.behave = behave
    async with (
        serving("test", kit.settings(max_call_s=0.2), [echo.registration()]) as server,
        aio_channel(server.target, token="secret") as plain,
    ):
        with pytest.raises(grpc.RpcError, match="set no deadline") as caught:
            await kit.client(plain).call("unary", "x")
        assert isinstance(error_from_rpc(caught.value), DeadlineExceededError)
        assert await kit.client(plain).call("unary", "x", timeout=30) == ["x"]


async def test_deadline_is_passed_on_to_peers(kit: Any, echo: Any) -> None:
    """A peer is given what the first call has left, whatever timeout the handler wished for."""
    left: dict[str, float | None] = {}

    async def behave(text: str) -> str:
        left[text] = remaining_s()
        if text == "outer":
            async with aio_channel(server.target, token="secret") as to_peer:
                await kit.client(to_peer).call("unary", "inner", timeout=500)
        return text

    echo.behave = behave
    async with (
        serving("test", kit.settings(), [echo.registration()]) as server,
        aio_channel(server.target, token="secret") as plain,
    ):
        await kit.client(plain).call("unary", "outer", timeout=20)
    assert left["outer"] is not None
    assert left["inner"] is not None
    # On the wire a timeout is rounded up.
    assert 10 < left["inner"] <= left["outer"] + 0.1 <= 20.2


async def test_default_timeout_of_a_channel_is_used(kit: Any, echo: Any) -> None:
    """A channel made with a default gives it to calls that set none."""
    left = []

    async def behave(text: str) -> str:
        left.append(remaining_s())
        return text

    echo.behave = behave
    async with (
        serving("test", kit.settings(), [echo.registration()]) as server,
        aio_channel(server.target, token="secret", default_timeout_s=7) as plain,
    ):
        await kit.client(plain).call("unary", "x")
    assert 5 < left[0] <= 7


async def test_drain_lets_open_calls_end_and_takes_no_more(kit: Any, echo: Any) -> None:
    """While draining health says NOT_SERVING, an open call gets its answer, a new one is UNAVAILABLE."""
    release, watching = asyncio.Event(), asyncio.Event()
    statuses = []

    async def behave(text: str) -> str:
        await release.wait()
        return text

    async def watch(target: str) -> None:
        async with grpc.aio.insecure_channel(target) as plain:
            call = health_pb2_grpc.HealthStub(plain).Watch(health_pb2.HealthCheckRequest())
            async for answer in call:
                statuses.append(answer.status)
                watching.set()
                if answer.status == NOT_SERVING:
                    call.cancel()
                    return

    echo.behave = behave
    async with (
        serving("test", kit.settings(), [echo.registration()]) as server,
        aio_channel(server.target, token="secret") as plain,
    ):
        watcher = asyncio.create_task(watch(server.target))
        await watching.wait()
        held = asyncio.create_task(kit.client(plain).call("unary", "x"))
        await kit.until(lambda: echo.calls == 1)
        draining = asyncio.create_task(server.drain(10))
        await watcher
        assert (await kit.get(server, "/readyz"))[0] == 503
        async with aio_channel(server.target, token="secret") as late:
            with pytest.raises(grpc.RpcError) as caught:
                await kit.client(late).call("unary", "y")
        assert isinstance(error_from_rpc(caught.value), UnavailableError)
        release.set()
        assert await held == ["x"]
        await draining
    assert statuses == [SERVING, NOT_SERVING]
    assert echo.calls == 1


async def test_drain_ends_after_its_grace(kit: Any, echo: Any) -> None:
    """A call that does not end is cancelled when the grace is over."""
    stopped = asyncio.Event()

    async def behave(text: str) -> str:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return text

    echo.behave = behave
    async with (
        serving("test", kit.settings(drain_s=0.2), [echo.registration()]) as server,
        aio_channel(server.target, token="secret") as plain,
    ):
        held = asyncio.create_task(kit.client(plain).call("server_stream", "x"))
        await kit.until(lambda: echo.calls == 1)
        async with asyncio.timeout(5):
            await server.drain()
            await stopped.wait()
        with pytest.raises(grpc.RpcError):
            await held


@pytest.mark.parametrize("field", ["port", "metrics_port"])
async def test_taken_port_says_which_setting_to_change(kit: Any, field: str) -> None:
    """The message names the address and the variable."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        number = other.getsockname()[1]
        with pytest.raises(PortTakenError, match=rf"127.0.0.1:{number} .* set {field.upper()} to a free port"):
            async with serving("test", kit.settings(**{field: number}), []):
                pytest.fail("the port was not free")


async def test_two_servers_do_not_share_a_port(kit: Any) -> None:
    """The kernel never spreads one port's calls over two services."""
    async with serving("first", kit.settings(), []) as server:
        with pytest.raises(PortTakenError):
            async with serving("second", kit.settings(port=server.port), []):
                pytest.fail("the port was not free")


async def test_metrics_count_calls_by_method_and_code(kit: Any, echo: Any) -> None:
    """Begun and ended calls are counted, timed, and the build is named; the port has nothing else."""
    async with (
        serving("test", kit.settings(), [echo.registration()]) as server,
        aio_channel(server.target, token="secret") as plain,
    ):
        labels = f'grpc_method="BidiStream",grpc_service="{kit.name}",grpc_type="bidi_stream"'

        async def count(name: str) -> float:
            lines = (await kit.get(server, "/metrics"))[1].splitlines()
            return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

        names = [
            f"grpc_server_started_total{{{labels}",
            f'grpc_server_handled_total{{grpc_code="OK",{labels}',
            f"grpc_server_handling_seconds_count{{{labels}",
        ]
        before = [await count(name) for name in names]
        assert await kit.client(plain).call("bidi_stream", "a", "b") == ["a", "b"]
        assert [await count(name) - old for name, old in zip(names, before, strict=True)] == [1, 1, 1]
        assert await count('weft_build_info{component="') >= 1
        assert (await kit.get(server, "/livez"))[0] == 200
        assert (await kit.get(server, "/x"))[0] == 404
