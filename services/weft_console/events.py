"""
Server streams of gRPC as server-sent events.

A browser takes a lost stream up again by itself: so a peer that is away for a moment, and this process being told to
stop, just end the stream; any other error is told in a `problem` event, and an ended stream in an `end` event.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import Message
from starlette.responses import StreamingResponse

from weft_console.problems import peer_error

__all__ = ["Event", "event_stream"]

_HEARTBEAT_S = 15.0
_RETRY_MS = 1500


@dataclass(frozen=True)
class Event:
    """One event: its name, its JSON, and the id that a browser comes back with."""

    name: str
    data: Any
    id: str | None = None

    def encode(self) -> bytes:
        head = f"event: {self.name}\n" + (f"id: {self.id}\n" if self.id is not None else "")
        return f"{head}data: {json.dumps(self.data, allow_nan=False)}\n\n".encode()


def event_stream(call: Any, read: Callable[[Any], Iterable[Event]], stopping: asyncio.Event) -> StreamingResponse:
    """
    Answer with a call's messages as events.

    Args:
        call: An open server-streaming call of grpc.aio.
        read: Turns a message into events.
        stopping: Set when the process is told to stop.
    """
    return StreamingResponse(
        _events(call, read, stopping),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _events(
    call: Any, read: Callable[[Message], Iterable[Event]], stopping: asyncio.Event
) -> AsyncIterator[bytes]:
    yield f"retry: {_RETRY_MS}\n\n".encode()
    messages = aiter(call)
    stop: asyncio.Future[Any] = asyncio.ensure_future(stopping.wait())
    coming: asyncio.Future[Any] = asyncio.ensure_future(anext(messages))
    try:
        while True:
            done, _ = await asyncio.wait((coming, stop), timeout=_HEARTBEAT_S, return_when=asyncio.FIRST_COMPLETED)
            if stop in done:
                return
            if coming not in done:
                yield b": still here\n\n"
                continue
            try:
                message = coming.result()
            except StopAsyncIteration:
                yield Event("end", {}).encode()
                return
            except grpc.RpcError as exc:
                error = peer_error(exc)
                if not error.retryable:
                    yield Event("problem", {"code": error.code.name, "detail": error.message}).encode()
                return
            for event in read(message):
                yield event.encode()
            coming = asyncio.ensure_future(anext(messages))
    finally:
        stop.cancel()
        coming.cancel()
        call.cancel()
