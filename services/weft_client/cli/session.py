"""What every command shares: where the services are, and whether a program or a person reads the output."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from weft_client.connecting import chosen_context
from weft_client.contexts import ContextFile, default_path
from weft_client.sync.client import Client

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON, for programs; errors too.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Return at once; the work goes on.")]
ValidateOnly = Annotated[bool, typer.Option("--validate-only", help="Check everything and change nothing.")]


@dataclass(slots=True)
class Session:
    """
    One run of the command.

    Args:
        endpoints: File that was named by `--endpoints`.
        context: Context that was named by `--context`.
        json: Whether `--json` stands anywhere on the command line.
    """

    endpoints: Path | None = None
    context: str | None = None
    json: bool = False


_CURRENT: ContextVar[Session] = ContextVar("session")


def begin(session: Session) -> None:
    """Make this the session of the command that runs."""
    _CURRENT.set(session)


def session() -> Session:
    """The session of the command that runs."""
    return _CURRENT.get()


@contextmanager
def connected() -> Iterator[Client]:
    """A client of the services that this command talks to."""
    named = session()
    path, context = chosen_context(named.endpoints, named.context)
    if context:
        named.context = context
        warn(ContextFile.read(default_path()).mode_problem())
    with Client.connect(path, context=context) as client:
        yield client


def warn(message: str) -> None:
    """Say something on stderr that does not stop the command; an empty message says nothing."""
    if message and session().json:
        sys.stderr.write(json.dumps({"warning": {"message": message}}) + "\n")
    elif message:
        sys.stderr.write(f"weft: warning: {message}\n")
