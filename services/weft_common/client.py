"""
Channels to weft's services, and the typed error that a failed call stands for.

Every call carries the bearer token, the request id and the trace of the call being served, and no more time than that
one has left. gRPC itself retries UNAVAILABLE and CANCELLED, and nothing else, by service config; a call that its own
caller cancels is over at once.
"""

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import status_pb2
from pydantic import SecretStr

from weft_common.deadlines import bounded_timeout
from weft_common.errors import WeftError, error_class
from weft_common.logging import current_request_id
from weft_common.status import error_from_status
from weft_common.tracing import trace_metadata

__all__ = ["aio_channel", "channel", "error_from_rpc"]

_STATUS_KEY = "grpc-status-details-bin"
# Seven seconds or so in all: as long as an upgrade leaves the trainer's Service without a controller that leads, on a
# node whose processors are all busy with new pods. CANCELLED is what gRPC's core answers to calls that have arrived at
# a server that stops, and that nobody there has looked at yet (grpc/grpc#41785).
_SERVICE_CONFIG = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.3s",
                    "maxBackoff": "5s",
                    "backoffMultiplier": 2.5,
                    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
                },
            }
        ]
    }
)


def aio_channel(
    target: str,
    *,
    token: SecretStr | str | None = None,
    tls: bool = False,
    tls_ca: Path | None = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    tls_server_name: str | None = None,
    max_message_bytes: int = 64 << 20,
    default_timeout_s: float | None = None,
) -> grpc.aio.Channel:
    """
    Open an asyncio channel; close it with `await channel.close()` or use it in `async with`.

    Args:
        target: host:port.
        token: Bearer token of the service.
        tls: Speak TLS; any of the other tls arguments turns it on too.
        tls_ca: PEM file of the authority to trust; the system's own where None.
        tls_cert: PEM file with this client's certificate, for mutual TLS.
        tls_key: PEM file with the key of tls_cert.
        tls_server_name: Name that the server's certificate must have, where it is not the target's.
        max_message_bytes: Largest message taken or sent.
        default_timeout_s: Deadline of calls that set none.
    """
    caller = _Caller(_text(token), default_timeout_s)
    interceptors: list[Any] = [
        _AioUnaryUnary(caller),
        _AioUnaryStream(caller),
        _AioStreamUnary(caller),
        _AioStreamStream(caller),
    ]
    options = _options(max_message_bytes, tls_server_name)
    if not (tls or tls_ca or tls_cert):
        return grpc.aio.insecure_channel(target, options=options, interceptors=interceptors)
    return grpc.aio.secure_channel(
        target, _credentials(tls_ca, tls_cert, tls_key), options=options, interceptors=interceptors
    )


def channel(
    target: str,
    *,
    token: SecretStr | str | None = None,
    tls: bool = False,
    tls_ca: Path | None = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    tls_server_name: str | None = None,
    max_message_bytes: int = 64 << 20,
    default_timeout_s: float | None = None,
) -> grpc.Channel:
    """Open a channel for calls that block; arguments as those of `aio_channel`."""
    options = _options(max_message_bytes, tls_server_name)
    if not (tls or tls_ca or tls_cert):
        plain = grpc.insecure_channel(target, options=options)
    else:
        plain = grpc.secure_channel(target, _credentials(tls_ca, tls_cert, tls_key), options=options)
    return grpc.intercept_channel(plain, _Sync(_Caller(_text(token), default_timeout_s)))


def error_from_rpc(exc: grpc.RpcError) -> WeftError:
    """
    Return the error that a failed call stands for, as typed as the server sent it.

    Use it as `except grpc.RpcError as exc: raise error_from_rpc(exc) from exc`.
    """
    call = cast(Any, exc)
    code, details = call.code(), call.details() or ""
    for key, value in call.trailing_metadata() or ():
        if key == _STATUS_KEY:
            try:
                return error_from_status(status_pb2.Status.FromString(value))
            except DecodeError:
                break
    if code is grpc.StatusCode.UNAVAILABLE:
        details = f"the service cannot be reached ({details}); check that it runs and that its address is right"
    elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
        details = "no answer came before the call's deadline; allow more time, or ask for less"
    elif code is grpc.StatusCode.CANCELLED:
        details = "the call was cancelled"
    return error_class(code.value[0])(details)


class _CallDetails(NamedTuple):
    """What gRPC hands from one interceptor to the next; both of its flavours read these attributes."""

    method: Any
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any = None


class _Caller:
    """Completes the details of a call."""

    def __init__(self, token: str | None, default_timeout_s: float | None) -> None:
        self._token = token
        self._default_timeout_s = default_timeout_s

    def complete(self, details: Any) -> Any:
        metadata = list(details.metadata or ())
        given = {key for key, _ in metadata}
        if self._token is not None and "authorization" not in given:
            metadata.append(("authorization", f"Bearer {self._token}"))
        if "x-request-id" not in given:
            metadata.append(("x-request-id", current_request_id() or uuid.uuid4().hex))
        metadata += [(key, value) for key, value in trace_metadata() if key not in given]
        timeout = bounded_timeout(details.timeout if details.timeout is not None else self._default_timeout_s)
        return _CallDetails(
            method=details.method,
            timeout=timeout,
            metadata=metadata,
            credentials=details.credentials,
            wait_for_ready=details.wait_for_ready,
            compression=getattr(details, "compression", None),
        )


class _Sync(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    def __init__(self, caller: _Caller) -> None:
        self._caller = caller

    def _intercept(self, continuation: Callable[[Any, Any], Any], details: Any, request: Any) -> Any:
        return continuation(self._caller.complete(details), request)

    intercept_unary_unary: Any = _intercept
    intercept_unary_stream: Any = _intercept
    intercept_stream_unary: Any = _intercept
    intercept_stream_stream: Any = _intercept


class _Aio:
    def __init__(self, caller: _Caller) -> None:
        self._caller = caller

    async def _intercept(self, continuation: Callable[[Any, Any], Any], details: Any, request: Any) -> Any:
        completed = self._caller.complete(details)
        return await continuation(
            grpc.aio.ClientCallDetails(
                completed.method,
                completed.timeout,
                grpc.aio.Metadata(*completed.metadata),
                completed.credentials,
                completed.wait_for_ready,
            ),
            request,
        )


class _AioUnaryUnary(_Aio, grpc.aio.UnaryUnaryClientInterceptor):
    intercept_unary_unary: Any = _Aio._intercept


class _AioUnaryStream(_Aio, grpc.aio.UnaryStreamClientInterceptor):
    intercept_unary_stream: Any = _Aio._intercept


class _AioStreamUnary(_Aio, grpc.aio.StreamUnaryClientInterceptor):
    intercept_stream_unary: Any = _Aio._intercept


class _AioStreamStream(_Aio, grpc.aio.StreamStreamClientInterceptor):
    intercept_stream_stream: Any = _Aio._intercept


def _text(token: SecretStr | str | None) -> str | None:
    return token.get_secret_value() if isinstance(token, SecretStr) else token


def _credentials(ca: Path | None, cert: Path | None, key: Path | None) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(*(None if path is None else path.read_bytes() for path in (ca, key, cert)))


def _options(max_message_bytes: int, tls_server_name: str | None) -> list[tuple[str, Any]]:
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.enable_retries", 1),
        ("grpc.service_config", _SERVICE_CONFIG),
        # A service that was restarted is found again soon.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5_000),
    ]
    if tls_server_name is not None:
        options.append(("grpc.ssl_target_name_override", tls_server_name))
    return options
