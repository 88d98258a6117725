"""Reads what the page sends, within bounds and with messages that say what is wrong."""

import json
from typing import Any, TypeVar

from starlette.requests import Request

from weft_common.errors import InvalidArgumentError
from weft_common.resource_names import check_id

__all__ = ["page_of", "path_id", "read_bytes", "read_field", "read_json"]

T = TypeVar("T", str, int, float, list[Any])


async def read_json(request: Request) -> dict[str, Any]:
    """
    Return the body, a JSON object.

    Raises:
        InvalidArgumentError: It is too long, of another type, or no JSON object.
    """
    limit: int = request.app.state.settings.max_body_bytes
    body = await read_bytes(request, "application/json", limit, "send less, or raise WEFT_CONSOLE_MAX_BODY_BYTES")
    try:
        value = json.loads(body)
    except ValueError:
        raise InvalidArgumentError("the body is no valid JSON") from None
    if not isinstance(value, dict):
        raise InvalidArgumentError("the body is no JSON object; send {...}")
    return value


async def read_bytes(request: Request, wanted: str, limit: int, advice: str) -> bytes:
    """
    Return the body.

    Args:
        request: What came.
        wanted: Its content type.
        limit: Most bytes that are read.
        advice: What to do where there are more.

    Raises:
        InvalidArgumentError: It is too long, or of another type.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != wanted:
        raise InvalidArgumentError(f"the body is {kind or 'of no type'}; send {wanted}")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise InvalidArgumentError(f"the body has more than {limit} bytes; {advice}")
    return bytes(body)


def read_field(body: dict[str, Any], name: str, kind: type[T], default: T | None = None) -> T:
    """
    Return one field of a body.

    Raises:
        InvalidArgumentError: It is missing without a default, or of another type.
    """
    value = body.get(name, default)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InvalidArgumentError(f"{name} is {_shown(value)}; give a value of type {kind.__name__}", field=name)
    return value


def path_id(request: Request, collection: str) -> str:
    """Return the resource name `{collection}/{id}` that the path's `{id}` stands for."""
    return f"{collection}/{check_id(request.path_params['id'])}"


def page_of(request: Request) -> dict[str, Any]:
    """
    Return page_size and page_token of a list request.

    Raises:
        InvalidArgumentError: page_size is no number.
    """
    size = request.query_params.get("page_size", "0")
    if not size.isdecimal() or len(size) > 6:
        raise InvalidArgumentError(f"page_size is {size!r}; give a number from 0 to 1000", field="page_size")
    return {"page_size": int(size), "page_token": request.query_params.get("page_token", "")}


def _shown(value: Any) -> str:
    return "missing" if value is None else repr(value)[:80]
