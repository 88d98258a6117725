"""A service without a proto of its own: four methods, one of each kind, whose behaviour a test gives."""

import asyncio
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import grpc
import pytest
import structlog
from google.protobuf import wrappers_pb2

from weft_common.server import Registration, Server
from weft_common.settings import ServiceSettings

NAME = "weft.test.v1.EchoService"
Text = wrappers_pb2.StringValue
Behaviour = Callable[[str], Awaitable[str]]


class Echo:
    """Answers each request with what `behave` makes of it; streams answer twice a request."""

    def __init__(self) -> None:
        self.behave: Behaviour = self.same
        self.metadata: dict[str, Any] = {}
        self.calls = 0

    @staticmethod
    async def same(text: str) -> str:
        return text

    async def _answer(self, request: Text, context: Any) -> Text:
        self.calls += 1
        self.metadata = dict(context.invocation_metadata())
        return Text(value=await self.behave(request.value))

    async def unary(self, request: Text, context: Any) -> Text:
        return await self._answer(request, context)

    async def server_stream(self, request: Text, context: Any) -> AsyncIterator[Text]:
        for _ in range(2):
            yield await self._answer(request, context)

    async def client_stream(self, requests: AsyncIterator[Text], context: Any) -> Text:
        texts = [(await self._answer(request, context)).value async for request in requests]
        return Text(value=",".join(texts))

    async def bidi_stream(self, requests: AsyncIterator[Text], context: Any) -> AsyncIterator[Text]:
        async for request in requests:
            yield await self._answer(request, context)

    async def writes(self, request: Text, context: Any) -> None:
        await context.write(await self._answer(request, context))

    def registration(self) -> Registration:
        coding: Any = {"request_deserializer": Text.FromString, "response_serializer": Text.SerializeToString}
        methods = {
            "Unary": grpc.unary_unary_rpc_method_handler(self.unary, **coding),
            "ServerStream": grpc.unary_stream_rpc_method_handler(self.server_stream, **coding),
            "ClientStream": grpc.stream_unary_rpc_method_handler(self.client_stream, **coding),
            "BidiStream": grpc.stream_stream_rpc_method_handler(self.bidi_stream, **coding),
            "Writes": grpc.unary_stream_rpc_method_handler(self.writes, **coding),
        }
        handler = grpc.method_handlers_generic_handler(NAME, methods)
        return Registration(NAME, lambda server: server.add_generic_rpc_handlers((handler,)))


class EchoClient:
    """Calls Echo over an asyncio channel; every kind gives the list of its answers."""

    KINDS = ("unary", "server_stream", "client_stream", "bidi_stream")

    def __init__(self, channel: grpc.aio.Channel) -> None:
        coding: Any = {"request_serializer": Text.SerializeToString, "response_deserializer": Text.FromString}
        self.unary_call = channel.unary_unary(f"/{NAME}/Unary", **coding)
        self._server_stream = channel.unary_stream(f"/{NAME}/ServerStream", **coding)
        self._client_stream = channel.stream_unary(f"/{NAME}/ClientStream", **coding)
        self._bidi_stream = channel.stream_stream(f"/{NAME}/BidiStream", **coding)
        self._writes = channel.unary_stream(f"/{NAME}/Writes", **coding)

    async def call(self, kind: str, *texts: str, **options: Any) -> list[str]:
        requests = [Text(value=text) for text in texts]
        if kind == "unary":
            return [(await self.unary_call(requests[0], **options)).value]
        if kind == "server_stream":
            return [answer.value async for answer in self._server_stream(requests[0], **options)]
        if kind == "client_stream":
            return [(await self._client_stream(iter(requests), **options)).value]
        if kind == "bidi_stream":
            return [answer.value async for answer in self._bidi_stream(iter(requests), **options)]
        return [answer.value async for answer in self._writes(requests[0], **options)]


class Kit:
    """What the tests of a server need; conftest modules cannot be imported from."""

    name = NAME
    text = Text
    client = EchoClient

    @staticmethod
    def settings(**fields: Any) -> ServiceSettings:
        return ServiceSettings(**{"token": "secret", **fields})

    @staticmethod
    async def until(condition: Callable[[], bool]) -> None:
        """Wait for what other tasks bring about."""
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 (conditions of several parties)
                await asyncio.sleep(0.005)

    @staticmethod
    async def get(server: Server, path: str) -> tuple[int, str]:
        """Ask the metrics port."""

        def fetch() -> tuple[int, str]:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}{path}", timeout=5) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, error.read().decode()

        return await asyncio.to_thread(fetch)


@pytest.fixture
def kit() -> type[Kit]:
    return Kit


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture(autouse=True)
def _own_contextvars() -> Iterator[None]:
    """A test's request id and deadline are its own."""
    structlog.contextvars.clear_contextvars()
    yield
    structlog.contextvars.clear_contextvars()
