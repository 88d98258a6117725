"""
The console's ASGI application: the built page, signing in, and JSON for what the page shows.

Three hops: a handler of `api/` reads the request, asks a peer by gRPC, answers with the message as JSON.
"""

import asyncio
from pathlib import Path
from urllib.parse import urlencode

import grpc
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from weft_common.errors import FailedPreconditionError, NotFoundError, UnauthenticatedError, WeftError
from weft_console.api import (
    analyses,
    datasets,
    features,
    graph_labels,
    graphs,
    hearing,
    interpretations,
    lab,
    labels,
    readings,
    runs,
    steering,
    transcoders,
)
from weft_console.api.requests import read_field, read_json
from weft_console.guard import Guard
from weft_console.peers import Peers
from weft_console.problems import on_error, problem
from weft_console.sessions import Sessions
from weft_console.settings import ConsoleSettings

__all__ = ["build_app", "check_page"]


def check_page(static_dir: Path) -> None:
    """
    Make sure that the page is built.

    Raises:
        FailedPreconditionError: It is not.
    """
    if not (static_dir / "index.html").is_file():
        raise FailedPreconditionError(
            f"the page is not built: {static_dir} has no index.html; run `make page`, or set WEFT_CONSOLE_STATIC_DIR"
        )


def build_app(settings: ConsoleSettings, peers: Peers, stopping: asyncio.Event) -> Starlette:
    """
    Assemble the application.

    Args:
        settings: The console's.
        peers: The other services.
        stopping: Set once the process is told to stop; ends live streams.
    """
    sessions = Sessions(settings.token, max_age_s=settings.session_s, secure=settings.tls_cert is not None)
    app = Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/api/session", get_session),
            Route("/api/session", sign_in, methods=["POST"]),
            Route("/api/session", sign_out, methods=["DELETE"]),
            *graphs.ROUTES,
            *readings.ROUTES,
            *steering.ROUTES,
            *features.ROUTES,
            *labels.ROUTES,
            *runs.ROUTES,
            *datasets.ROUTES,
            *analyses.ROUTES,
            *hearing.ROUTES,
            *lab.ROUTES,
            *graph_labels.ROUTES,
            *interpretations.ROUTES,
            *transcoders.ROUTES,
            Route("/api/{rest:path}", no_such_path, methods=["GET", "POST", "DELETE"]),
            Mount("/assets", Assets(directory=settings.static_dir / "assets")),
            Route("/{name:str}", root_file),
            Route("/{rest:path}", page),
        ],
        middleware=[
            Middleware(Guard, sessions=sessions, allowed_hosts=settings.allowed_hosts),
            Middleware(GZipMiddleware, minimum_size=4096, compresslevel=4),
        ],
        exception_handlers={WeftError: on_error, grpc.RpcError: on_error, Exception: on_error},
    )
    app.state.settings = settings
    app.state.peers = peers
    app.state.sessions = sessions
    app.state.stopping = stopping
    return app


class Assets(StaticFiles):
    """Files whose names hold a digest of their content: a browser keeps them for good."""

    async def get_response(self, path: str, scope: object) -> Response:
        response = await super().get_response(path, scope)  # type: ignore[arg-type]
        if response.status_code == 200:
            response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        return response


async def healthz(request: Request) -> Response:
    return PlainTextResponse("ok\n")


async def get_session(request: Request) -> Response:
    """Answers only who is signed in: everybody else is stopped by the guard."""
    return JSONResponse({})


async def sign_in(request: Request) -> Response:
    sessions: Sessions = request.app.state.sessions
    token = read_field(await read_json(request), "token", str)
    if not sessions.accepts(token):
        return problem(UnauthenticatedError("this is not the console's token; `weft status` prints it"))
    response = JSONResponse({})
    sessions.open(response)
    return response


async def sign_out(request: Request) -> Response:
    sessions: Sessions = request.app.state.sessions
    response = JSONResponse({})
    sessions.close(response)
    return response


async def no_such_path(request: Request) -> Response:
    raise NotFoundError(f"there is no {request.url.path} here")


async def root_file(request: Request) -> Response:
    """A file beside index.html, such as the icon; any other name is one of the page's own paths."""
    settings: ConsoleSettings = request.app.state.settings
    path = settings.static_dir / request.path_params["name"]
    if path.suffix in (".js", ".svg", ".txt") and path.parent == settings.static_dir and path.is_file():
        return FileResponse(path, headers={"Cache-Control": "no-cache"})
    return await page(request)


async def page(request: Request) -> Response:
    """
    The page, whatever the path: its own scripts know the paths.

    A token in the address signs in once and is taken out of the address at once.
    """
    settings: ConsoleSettings = request.app.state.settings
    token = request.query_params.get("token")
    if token is None:
        return FileResponse(settings.static_dir / "index.html", headers={"Cache-Control": "no-cache"})
    sessions: Sessions = request.app.state.sessions
    kept = [(name, value) for name, value in request.query_params.multi_items() if name != "token"]
    # A path that begins with two slashes would lead to another host.
    path = "/" + request.url.path.lstrip("/")
    response = RedirectResponse(path + (f"?{urlencode(kept)}" if kept else ""), 303)
    if sessions.accepts(token):
        sessions.open(response)
    return response
