"""
What every request passes first: the host's name, who asks, that no other site made the browser ask.

A page of another site can make a browser send requests here, though not read the answers: so everything that changes
something needs a header that only this page's own scripts can set, and a cookie that other sites' requests never carry.
"""

import time
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from prometheus_client import Counter, Histogram
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from weft_common.errors import InvalidArgumentError, PermissionDeniedError, UnauthenticatedError, WeftError
from weft_common.metrics import REGISTRY
from weft_console.problems import problem
from weft_console.sessions import Sessions

__all__ = ["CSRF_HEADER", "SECURITY_HEADERS", "Guard"]

CSRF_HEADER = "x-weft-console"
SECURITY_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_REQUESTS = Counter(
    "weft_console_requests_total", "HTTP requests answered.", ("handler", "method", "status"), registry=REGISTRY
)
_SECONDS = Histogram(
    "weft_console_request_seconds",
    "Seconds from an HTTP request to the head of its answer.",
    ("handler",),
    buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60),
    registry=REGISTRY,
)
_METHODS = frozenset({"GET", "HEAD", "POST", "DELETE"})


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, *, sessions: Sessions, allowed_hosts: Collection[str]) -> None:
        self._app = app
        self._sessions = sessions
        self._allowed_hosts = frozenset(host.lower() for host in allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
                handler = getattr(scope.get("endpoint"), "__name__", "none")
                method = scope["method"] if scope["method"] in _METHODS else "other"
                _REQUESTS.labels(handler, method, str(message["status"])).inc()
                _SECONDS.labels(handler).observe(time.perf_counter() - started)
            await send(message)

        request = Request(scope, receive)
        refusal = self._refuse(request)
        if refusal is not None:
            error, status = refusal
            await problem(error, status)(scope, receive, send_guarded)
            return
        await self._app(scope, receive, send_guarded)

    def _refuse(self, request: Request) -> tuple[WeftError, int | None] | None:
        path = request.url.path
        if path == "/healthz":
            return None
        host = request.headers.get("host", "")
        if _name(host) not in self._allowed_hosts:
            return InvalidArgumentError(
                f"the page is not served as {host!r}; add that name to WEFT_CONSOLE_ALLOWED_HOSTS if it should be"
            ), 421
        if request.method not in ("GET", "HEAD"):
            origin = request.headers.get("origin")
            if request.headers.get(CSRF_HEADER) != "1" or (origin is not None and urlsplit(origin).netloc != host):
                return PermissionDeniedError(
                    "this request does not come from the console's own page; programs use gRPC, or send the header "
                    "X-Weft-Console: 1"
                ), None
        is_signing_in = path == "/api/session" and request.method == "POST"
        if path.startswith("/api/") and not is_signing_in and not self._sessions.is_signed_in(request):
            return UnauthenticatedError("nobody is signed in; sign in with the console's token"), None
        return None


def _name(host: str) -> str:
    """
    Return a Host header's name without its port.

    >>> _name("[::1]:8080"), _name("LocalHost:1"), _name("")
    ('[::1]', 'localhost', '')
    """
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].lower()
