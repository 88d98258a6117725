"""Errors on their way through a real server and back, over every kind of call."""

import asyncio
import functools
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2
from hypothesis import given
from hypothesis import strategies as st

from weft_common.client import aio_channel, channel, error_from_rpc
from weft_common.errors import (
    CancelledError,
    InternalError,
    InvalidArgumentError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
    WeftError,
)
from weft_common.server import serving
from weft_common.wire import find_bad_text

KINDS = ("unary", "server_stream", "client_stream", "bidi_stream", "writes")


def walk(root: type[WeftError] = WeftError) -> Iterator[type[WeftError]]:
    """All errors that have a code of their own on the wire; services may derive others, which come back as these."""
    for child in root.__subclasses__():
        if child.__module__ == WeftError.__module__:
            yield child
            yield from walk(child)


def raising(error: Exception) -> Any:
    async def behave(text: str) -> str:
        raise error

    return behave


async def test_every_subclass_comes_back_through_every_kind_of_call(kit: Any, echo: Any) -> None:
    """Class, message, field, metadata and delay survive the wire; only UNAVAILABLE and CANCELLED are retried."""
    async with (
        serving("test", kit.settings(), [echo.registration()]) as server,
        aio_channel(server.target, token="secret") as plain,
    ):
        client = kit.client(plain)
        for cls in walk():
            for kind in KINDS:
                error = cls("wrong: é", field="a.b", metadata={"k": "v"}, retry_after_s=0.01)
                echo.behave, echo.calls = raising(error), 0
                with pytest.raises(grpc.RpcError) as caught:
                    await client.call(kind, "x")
                back = error_from_rpc(caught.value)
                assert type(back) is cls, (cls, kind, back)
                assert (back.message, back.field, back.metadata) == ("wrong: é", "a.b", {"k": "v"})
                assert back.retry_after_s == 0.01
                # A streamed request is sent again only while gRPC still holds all of it.
                assert echo.calls == (5 if cls in (UnavailableError, CancelledError) else 1), (cls, kind)


@pytest.mark.parametrize("kind", ["client_stream", "bidi_stream"])
@pytest.mark.parametrize("token", ["secret", "wrong"])
async def test_refusal_reaches_a_caller_that_is_still_sending(kit: Any, echo: Any, kind: str, token: str) -> None:
    """A stream that is refused at its first message ends with the refusal, not with the failure of a later write."""
    echo.behave = raising(InvalidArgumentError("wrong"))
    expected = InvalidArgumentError if token == "secret" else UnauthenticatedError
    async with (
        serving("test", kit.settings(), [echo.registration()]) as server,
        aio_channel(server.target, token=token) as plain,
    ):
        client = kit.client(plain)
        for _ in range(10):
            with pytest.raises(grpc.RpcError) as caught:
                await client.call(kind, *["x" * 65_536] * 32)
            assert type(error_from_rpc(caught.value)) is expected


async def test_caller_that_sends_nothing_more_is_refused_soon(kit: Any, echo: Any) -> None:
    """What is not sent is not waited for: the refusal comes while the caller's stream is still open."""
    echo.behave = raising(InvalidArgumentError("wrong"))
    async with (
        serving("test", kit.settings(), [echo.registration()]) as server,
        aio_channel(server.target, token="secret") as plain,
    ):
        call: Any = plain.stream_unary(f"/{kit.name}/ClientStream", request_serializer=kit.text.SerializeToString)()
        await call.write(kit.text(value="x"))
        async with asyncio.timeout(60):
            with pytest.raises(grpc.RpcError) as caught:
                await call
    assert type(error_from_rpc(caught.value)) is InvalidArgumentError


def _sync_error(target: str, name: str) -> WeftError:
    with channel(target, token="secret") as plain:
        call: Any = plain.unary_unary(f"/{name}/Unary")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"")
        return error_from_rpc(caught.value)


async def test_blocking_channel_gives_the_same_error(kit: Any, echo: Any) -> None:
    """The typed error comes out of the blocking channel too."""
    echo.behave = raising(InvalidArgumentError("wrong", field="f"))
    async with serving("test", kit.settings(), [echo.registration()]) as server:
        back = await asyncio.to_thread(_sync_error, server.target, kit.name)
    assert isinstance(back, InvalidArgumentError)
    assert back.field == "f"


@pytest.mark.parametrize("kind", KINDS)
async def test_unexpected_exception_is_internal_without_its_text(kit: Any, echo: Any, kind: str) -> None:
    """A traceback never leaves the service; the request id to look for does."""
    echo.behave = raising(RuntimeError("secret path /etc/x"))
    async with (
        serving("test", kit.settings(), [echo.registration()]) as server,
        aio_channel(server.target, token="secret") as plain,
    ):
        with pytest.raises(grpc.RpcError) as caught:
            await kit.client(plain).call(kind, "x", metadata=(("x-request-id", "r-17"),))
    back = error_from_rpc(caught.value)
    assert type(back) is InternalError
    assert "secret" not in back.message
    assert "r-17" in back.message
    assert back.metadata == {"request_id": "r-17"}


async def test_transient_unavailable_is_retried_by_the_channel(kit: Any, echo: Any) -> None:
    """A caller does not see a failure that the third attempt mends."""

    async def behave(text: str) -> str:
        if echo.calls < 3:
            raise UnavailableError("in a moment", retry_after_s=0.01)
        return text

    echo.behave = behave
    async with (
        serving("test", kit.settings(), [echo.registration()]) as server,
        aio_channel(server.target, token="secret") as plain,
    ):
        assert await kit.client(plain).call("unary", "x") == ["x"]
    assert echo.calls == 3


async def test_peers_error_passes_through_but_not_its_refusal_of_our_token(kit: Any, echo: Any) -> None:
    """What a peer says of the request is the caller's; that the peer refuses this service is not."""

    async def behave(text: str) -> str:
        async with aio_channel(peer.target, token=text) as to_peer:
            await kit.client(to_peer).call("unary", "x")
        return "unreachable"

    echo.behave = behave
    other = type(echo)()
    other.behave = raising(InvalidArgumentError("layer 99 of 30", field="layer"))
    async with (
        serving("peer", kit.settings(token="peers"), [other.registration()]) as peer,
        serving("test", kit.settings(), [echo.registration()]) as server,
        aio_channel(server.target, token="secret") as plain,
    ):
        with pytest.raises(grpc.RpcError) as caught:
            await kit.client(plain).call("unary", "peers")
        passed = error_from_rpc(caught.value)
        with pytest.raises(grpc.RpcError) as caught:
            await kit.client(plain).call("unary", "wrong")
        refused = error_from_rpc(caught.value)
    assert isinstance(passed, InvalidArgumentError)
    assert passed.field == "layer"
    assert type(refused) is InternalError
    assert "token" in refused.message


@pytest.mark.parametrize("kind", KINDS)
async def test_text_that_is_not_utf8_is_invalid_argument(kit: Any, echo: Any, kind: str) -> None:
    """Bytes in a string field that are no UTF-8 are the caller's mistake, and the field is named."""
    raw = b"\x0a\x03a\xff\xfe"
    async with (
        serving("test", kit.settings(), [echo.registration()]) as server,
        aio_channel(server.target, token="secret") as plain,
    ):
        client = kit.client(plain)
        for name in ("unary_call", "_server_stream", "_client_stream", "_bidi_stream", "_writes"):
            getattr(client, name)._request_serializer = lambda _: raw
        with pytest.raises(grpc.RpcError) as caught:
            await client.call(kind, "x")
    back = error_from_rpc(caught.value)
    assert isinstance(back, InvalidArgumentError)
    assert back.field == "value"
    assert "value holds bytes that are not UTF-8" in back.message
    assert echo.calls == 0


async def test_truncated_request_is_invalid_argument(kit: Any, echo: Any) -> None:
    """Bytes that are no message at all are the caller's mistake too."""
    async with (
        serving("test", kit.settings(), [echo.registration()]) as server,
        aio_channel(server.target, token="secret") as plain,
    ):
        call: Any = plain.unary_unary(f"/{kit.name}/Unary")
        with pytest.raises(grpc.RpcError) as caught:
            await call(b"\x0a\x09ab")
    back = error_from_rpc(caught.value)
    assert isinstance(back, InvalidArgumentError)
    assert "google.protobuf.StringValue" in back.message


def test_bad_text_is_found_in_nested_and_repeated_messages() -> None:
    """The path leads through messages, past fields of every wire type, and unknown ones."""
    find = functools.partial(find_bad_text, operations_pb2.Operation.DESCRIPTOR)
    assert find(b"\x0a\x01\xff") == "name"
    assert find(b"\x22\x03\x12\x01\xff") == "error.message"
    # done = true, then unknown fields 31 (bytes), 30 (fixed32) and 29 (fixed64), then the bad one.
    unknown = b"\xfa\x01\x01\xff" + b"\xf5\x01" + bytes(4) + b"\xe9\x01" + bytes(8)
    assert find(b"\x18\x01" + unknown + b"\x22\x03\x12\x01\xff") == "error.message"
    # In an Any the value is bytes, which may hold anything; the type's name may not.
    assert find(b"\x12\x03\x12\x01\xff") is None
    assert find(b"\x12\x03\x0a\x01\xff") == "metadata.type_url"


@given(st.binary(max_size=60))
def test_search_for_bad_text_ends_on_any_bytes(raw: bytes) -> None:
    """Whatever the bytes are, the search ends with a field or without one."""
    path = find_bad_text(operations_pb2.Operation.DESCRIPTOR, raw)
    assert path is None or path.split(".")[0] in {"name", "metadata", "error", "response"}


async def test_unknown_method_and_missing_peer_are_typed(kit: Any, echo: Any) -> None:
    """What gRPC itself answers becomes a typed error with something to do."""
    async with (
        serving("test", kit.settings(), [echo.registration()]) as server,
        aio_channel(server.target, token="secret") as plain,
    ):
        call: Any = plain.unary_unary(f"/{kit.name}/Nothing")
        with pytest.raises(grpc.RpcError) as caught:
            await call(b"")
    assert isinstance(error_from_rpc(caught.value), UnimplementedError)
    async with aio_channel(server.target) as plain:
        with pytest.raises(grpc.RpcError) as caught:
            await kit.client(plain).call("unary", "x")
    back = error_from_rpc(caught.value)
    assert isinstance(back, UnavailableError)
    assert "check that it runs" in back.message


async def test_wrong_or_missing_token_is_unauthenticated_before_decoding(kit: Any, echo: Any) -> None:
    """Who has no token learns how to send one, and nothing about the request is looked at."""
    async with serving("test", kit.settings(), [echo.registration()]) as server:
        for token, metadata, match in (
            (None, (), "authorization: Bearer TOKEN"),
            ("wrong", (), "not this service's"),
            (None, (("authorization", "Basic secret"),), "not this service's"),
            ("secret ", (), "not this service's"),
            ("secre", (), "not this service's"),
        ):
            async with aio_channel(server.target, token=token) as plain:
                call: Any = plain.unary_unary(f"/{kit.name}/Unary")
                with pytest.raises(grpc.RpcError, match=match) as caught:
                    await call(b"\x0a\x03a\xff\xfe", metadata=metadata)
            assert isinstance(error_from_rpc(caught.value), UnauthenticatedError)
    assert echo.calls == 0
