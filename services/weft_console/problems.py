"""Errors as the page gets them: application/problem+json (RFC 9457) with the gRPC code's name and the message."""

from collections.abc import Mapping

import grpc
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from weft_common.client import error_from_rpc
from weft_common.errors import Code, InternalError, UnauthenticatedError, WeftError
from weft_common.logging import get_logger

__all__ = ["HTTP_STATUS", "on_error", "peer_error", "problem"]

HTTP_STATUS: Mapping[Code, int] = {
    Code.INVALID_ARGUMENT: 400,
    Code.OUT_OF_RANGE: 400,
    Code.UNAUTHENTICATED: 401,
    Code.PERMISSION_DENIED: 403,
    Code.NOT_FOUND: 404,
    Code.CANCELLED: 409,
    Code.FAILED_PRECONDITION: 409,
    Code.ALREADY_EXISTS: 409,
    Code.ABORTED: 409,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503,
    Code.DEADLINE_EXCEEDED: 504,
}
_LOG = get_logger(__name__)


def problem(error: WeftError, status: int | None = None) -> JSONResponse:
    """Return the answer for an error; `status` where HTTP has a better one than the code's."""
    chosen = status if status is not None else HTTP_STATUS.get(error.code, 500)
    body = {"type": "about:blank", "status": chosen, "code": error.code.name, "detail": error.message}
    if error.field is not None:
        body["field"] = error.field
    headers = {} if error.retry_after_s is None else {"Retry-After": str(max(1, round(error.retry_after_s)))}
    return JSONResponse(body, chosen, headers, media_type="application/problem+json")


def peer_error(exc: grpc.RpcError) -> WeftError:
    """Return the error of a call to another service; its refusal of the console's token is the console's fault."""
    error = error_from_rpc(exc)
    if isinstance(error, UnauthenticatedError):
        return InternalError(
            f"another service refuses the console's token ({error.message}); set WEFT_CONSOLE_CACHE_TOKEN, "
            "WEFT_CONSOLE_TRAINER_TOKEN and WEFT_CONSOLE_ATTRIBUTION_TOKEN to the tokens of those services"
        )
    return error


async def on_error(request: Request, exc: Exception) -> Response:
    """Answer for an exception of a handler."""
    if isinstance(exc, grpc.RpcError):
        return problem(peer_error(exc))
    if isinstance(exc, WeftError):
        return problem(exc)
    _LOG.error("request failed", path=request.url.path, exc_info=exc)
    return problem(InternalError("the console failed at this request; its log says why"))
