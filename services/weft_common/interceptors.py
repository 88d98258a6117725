"""
What stands around every served call, outermost first: trace, metrics, auth, errors, admission.

Each interceptor wraps the handler it is given. Handlers are grpc.aio's: coroutines, and for streamed answers async
generators or coroutines that call `context.write`; streamed requests are read by iterating. What they answer is a
message, or the bytes of one that they encoded themselves. The innermost wrapper turns every one of them into a
coroutine in the call's own task, so that a cancelled call unwinds all of this at once.
"""

import asyncio
import hmac
import re
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing, nullcontext, suppress
from typing import Any, TypeAlias

import grpc
import structlog
from grpc_status import rpc_status

from weft_common.admission import Admission
from weft_common.client import error_from_rpc
from weft_common.deadlines import remaining_s, set_deadline
from weft_common.errors import (
    Code,
    DeadlineExceededError,
    InternalError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
    WeftError,
)
from weft_common.logging import current_request_id, get_logger
from weft_common.metrics import HANDLED, HANDLING_SECONDS, STARTED
from weft_common.status import status_from_error
from weft_common.tracing import Tracing
from weft_common.wire import decode_request, encoder

__all__ = [
    "AdmissionInterceptor",
    "AuthInterceptor",
    "ErrorInterceptor",
    "MetricsInterceptor",
    "TraceInterceptor",
    "as_weft_error",
    "call_kind",
]

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Behaviour: TypeAlias = Callable[[Any, Context], Awaitable[Any]]
Continuation: TypeAlias = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]

REQUEST_ID = "x-request-id"
_REQUEST_ID_FORM = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HEALTH = "/grpc.health.v1.Health/"
# A caller whose deadline expires cancels the call, which is known here before the deadline is, by what the call took to
# come; at most so much counts, and a quarter of what the caller gave.
_DEADLINE_SLACK_S = 0.5
# How much of a refused stream is still read, and for how long: a caller's pauses are shorter than its patience.
_REST_BYTES = 64 * 2**20
_REST_S = 5.0
_REST_PAUSE_S = 0.5
_LOG = get_logger(__name__)


class _Wrapping(grpc.aio.ServerInterceptor):
    """An interceptor that puts a coroutine around the handler's."""

    async def intercept_service(self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails) -> Any:
        handler: Handler | None = await continuation(handler_call_details)
        if handler is None:
            return None  # gRPC answers UNIMPLEMENTED itself
        inner = _behaviour(handler)
        method = handler_call_details.method
        return _rebuilt(
            handler,
            self.around(method, call_kind(handler), inner),
            handler.request_deserializer,
            handler.response_serializer,
        )

    def around(self, method: str, kind: str, inner: Behaviour) -> Behaviour:
        raise NotImplementedError


class TraceInterceptor(_Wrapping):
    """Names the request, spans it, and hands the name back in trailing metadata."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    def around(self, method: str, kind: str, inner: Behaviour) -> Behaviour:
        service, name = _split(method)

        async def traced(request: Any, context: Context) -> Any:
            metadata = list(context.invocation_metadata() or ())
            asked = dict(metadata).get(REQUEST_ID)
            known = isinstance(asked, str) and _REQUEST_ID_FORM.fullmatch(asked)
            request_id = str(asked) if known else uuid.uuid4().hex
            # The call has a task, and so a context, of its own: nothing needs to be unbound.
            structlog.contextvars.bind_contextvars(request_id=request_id, rpc=method)
            context.set_trailing_metadata(((REQUEST_ID, request_id),))
            left = context.time_remaining()
            if left is not None and left < 1e9:
                set_deadline(left)
            with self._tracing.call(service, name, metadata) as span:
                try:
                    return await inner(request, context)
                finally:
                    code = _code(context)
                    span.set_attribute("rpc.grpc.status_code", code.value)

        return traced


class MetricsInterceptor(_Wrapping):
    """Counts and times calls, by method and code."""

    def around(self, method: str, kind: str, inner: Behaviour) -> Behaviour:
        labels = (kind, *_split(method))

        async def measured(request: Any, context: Context) -> Any:
            STARTED.labels(*labels).inc()
            begun = time.perf_counter()
            code: Code | None = None
            try:
                answer = await inner(request, context)
                code = _code(context)
                return answer
            except asyncio.CancelledError:
                left, taken = remaining_s(), time.perf_counter() - begun
                is_due = left is not None and left <= min(_DEADLINE_SLACK_S, (left + taken) / 4)
                code = Code.DEADLINE_EXCEEDED if is_due else Code.CANCELLED
                raise
            finally:
                seconds = time.perf_counter() - begun
                code = _code(context) if code is None else code
                HANDLED.labels(*labels, code.name).inc()
                HANDLING_SECONDS.labels(*labels).observe(seconds)
                log = _LOG.debug if code is Code.OK else _LOG.info
                log("call ended", code=code.name, seconds=round(seconds, 6))

        return measured


class AuthInterceptor(_Wrapping):
    """Asks every caller but health checks for the bearer token; without one set, nobody is asked."""

    def __init__(self, token: str | None) -> None:
        self._expected = None if token is None else f"Bearer {token}".encode()

    def around(self, method: str, kind: str, inner: Behaviour) -> Behaviour:
        if self._expected is None or method.startswith(_HEALTH):
            return inner
        expected = self._expected

        async def checked(request: Any, context: Context) -> Any:
            given = dict(context.invocation_metadata() or ()).get("authorization")
            if given is None:
                await abort(
                    context,
                    request,
                    UnauthenticatedError("no token came with the call; send metadata `authorization: Bearer TOKEN`"),
                )
            raw = given.encode() if isinstance(given, str) else bytes(given or b"")
            if not hmac.compare_digest(raw, expected):
                await abort(
                    context,
                    request,
                    UnauthenticatedError(
                        "the token is not this service's; send `authorization: Bearer TOKEN` with the token that the "
                        "service was started with"
                    ),
                )
            return await inner(request, context)

        return checked


class ErrorInterceptor(_Wrapping):
    """Turns what a handler raises into google.rpc.Status; never shows a traceback."""

    def around(self, method: str, kind: str, inner: Behaviour) -> Behaviour:
        async def guarded(request: Any, context: Context) -> Any:
            try:
                return await inner(request, context)
            except (asyncio.CancelledError, grpc.aio.AbortError):
                raise
            except Exception as error:
                await abort(context, request, as_weft_error(error))

        return guarded


class AdmissionInterceptor(grpc.aio.ServerInterceptor):
    """
    Admits by count and bytes, decodes, and bounds the time of calls that came without a deadline.

    Requests stay bytes up to here: who is not let in costs no decoding. Until `ready` is set, calls are asked to
    come again, since their handlers may not be there yet.
    """

    def __init__(self, admission: Admission, max_call_s: float) -> None:
        self._admission = admission
        self._max_call_s = max_call_s
        self.ready = False

    async def intercept_service(self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails) -> Any:
        handler: Handler | None = await continuation(handler_call_details)
        method = handler_call_details.method
        exempt = method.startswith(_HEALTH)
        if not self.ready and not exempt:
            return grpc.unary_unary_rpc_method_handler(_refuse_while_starting)
        if handler is None:
            return None  # gRPC answers UNIMPLEMENTED itself
        inner = _behaviour(handler)
        decode = handler.request_deserializer
        request_streaming, response_streaming = handler.request_streaming, handler.response_streaming

        def decoded(raw: bytes) -> Any:
            return raw if decode is None else decode_request(decode, raw)

        async def decoded_stream(raws: AsyncIterator[bytes]) -> AsyncGenerator[Any, None]:
            async for raw in raws:
                with self._admission.hold(len(raw)):
                    yield decoded(raw)

        async def answered(request: Any, context: Context) -> Any:
            if response_streaming:
                return await _write_all(inner(request, context), context)
            if remaining_s() is not None:
                return await inner(request, context)
            return await self._bounded(inner(request, context))

        async def admitted(raw: Any, context: Context) -> Any:
            with nullcontext() if exempt else self._admission.call():
                if request_streaming:
                    # A handler that stops reading leaves its last message held: closing lets go of it.
                    async with aclosing(decoded_stream(raw)) as requests:
                        return await answered(requests, context)
                with nullcontext() if exempt else self._admission.hold(len(raw)):
                    return await answered(decoded(raw), context)

        return _rebuilt(handler, admitted, None, encoder(handler.response_serializer))

    async def _bounded(self, answer: Awaitable[Any]) -> Any:
        set_deadline(self._max_call_s)
        limit = asyncio.timeout(self._max_call_s)
        try:
            async with limit:
                return await answer
        except TimeoutError:
            if not limit.expired():
                raise
            raise DeadlineExceededError(
                f"the call set no deadline and was not done after {self._max_call_s:g} s; set one that is long enough"
            ) from None


def as_weft_error(error: Exception) -> WeftError:
    """Return what a caller is told about an exception; what is no error of ours is logged and stays inside."""
    if isinstance(error, WeftError):
        return error
    if isinstance(error, grpc.RpcError):
        from_peer = error_from_rpc(error)
        if not isinstance(from_peer, UnauthenticatedError | PermissionDeniedError):
            return from_peer
        _LOG.error("a peer refuses this service", message=from_peer.message)
        return InternalError(
            "another service refuses this one's token; its operator must give both the same token",
            metadata=_request_metadata(),
        )
    _LOG.error("unexpected error", exc_info=error)
    request_id = current_request_id()
    where = f"the service's log has it under request id {request_id}" if request_id else "the service's log has it"
    return InternalError(f"an internal error; {where}", metadata=_request_metadata())


async def abort(context: Context, request: Any, error: WeftError) -> None:
    """End a call with an error, once its caller was heard out; does not return."""
    await _read_rest(request)
    status = rpc_status.to_status(status_from_error(error))
    extra: list[tuple[str, str]] = []
    if request_id := current_request_id():
        extra.append((REQUEST_ID, request_id))
    if isinstance(error, UnavailableError) and error.retry_after_s is not None:
        # What gRPC's own retries go by.
        extra.append(("grpc-retry-pushback-ms", str(round(error.retry_after_s * 1000))))
    await context.abort(status.code, status.details, (*status.trailing_metadata, *extra))


async def _read_rest(request: Any) -> None:
    """
    Read what the caller of a refused stream still sends, within bounds, and let go of it.

    A caller in Python's asyncio whose write comes after the end of the call is told INTERNAL in place of the answer
    that it was given (https://github.com/grpc/grpc/issues/36066).
    """
    if not hasattr(request, "__aiter__"):
        return
    messages = aiter(request)
    num_bytes = 0
    with suppress(TimeoutError, StopAsyncIteration):
        async with asyncio.timeout(_REST_S):
            while num_bytes < _REST_BYTES:
                async with asyncio.timeout(_REST_PAUSE_S):
                    num_bytes += len(await anext(messages))


async def _refuse_while_starting(request: bytes, context: Context) -> bytes:
    raise UnavailableError("the service is starting; ask again in a moment", retry_after_s=1.0)


async def _write_all(answer: Any, context: Context) -> None:
    """Send what an async generator yields, or wait for a coroutine that writes by itself."""
    if not hasattr(answer, "__aiter__"):
        await answer
        return
    async with aclosing(answer):
        async for message in answer:
            await context.write(message)


def _request_metadata() -> dict[str, str]:
    request_id = current_request_id()
    return {} if request_id is None else {"request_id": request_id}


def _split(method: str) -> tuple[str, str]:
    service, _, name = method.removeprefix("/").rpartition("/")
    return service, name


def call_kind(handler: Handler) -> str:
    """Return what metrics call this kind of method: unary, client_stream, server_stream or bidi_stream."""
    asked = "client_stream" if handler.request_streaming else ""
    answered = "server_stream" if handler.response_streaming else ""
    return "bidi_stream" if asked and answered else asked or answered or "unary"


def _behaviour(handler: Handler) -> Behaviour:
    behaviours: Iterable[Any] = (
        handler.unary_unary,
        handler.unary_stream,
        handler.stream_unary,
        handler.stream_stream,
    )
    found: Behaviour = next(behaviour for behaviour in behaviours if behaviour is not None)
    return found


def _rebuilt(handler: Handler, behaviour: Behaviour, deserializer: Any, serializer: Any) -> Handler:
    make: Any = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]
    rebuilt: Handler = make(behaviour, deserializer, serializer)
    return rebuilt


def _code(context: Context) -> Code:
    """Return the code that a call ended with, as far as the handler decided it."""
    code: Any = context.code()
    if not code:
        return Code.OK
    return Code(code.value[0] if isinstance(code, grpc.StatusCode) else int(code))
