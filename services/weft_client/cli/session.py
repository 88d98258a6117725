"""What every command shares: where the services are, and whether a program or a person reads the output."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from weft_client.sync.client import Client

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON, for programs; errors too.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Return at once; the work goes on.")]
ValidateOnly = Annotated[bool, typer.Option("--validate-only", help="Check everything and change nothing.")]


@dataclass(slots=True)
class Session:
    """
    One run of the command.

    Args:
        endpoints: File that was named by `--endpoints` or WEFT_ENDPOINTS; None searches upwards.
        json: Whether `--json` stands anywhere on the command line.
    """

    endpoints: Path | None = None
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
    with Client.connect(session().endpoints) as client:
        yield client
