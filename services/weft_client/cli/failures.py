"""
How a command fails: one line that says what to do, and an exit code by the kind of failure.

    0  success                  1  everything that is not below
    2  the request is wrong: bad usage, INVALID_ARGUMENT
    130  Ctrl-C
"""

import json
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from weft_client.cli.session import Session, begin, session
from weft_common.errors import Code, UnavailableError, WeftError

# Typer brings its own click; this is the UsageError of that one.
_UsageError: Any = typer.BadParameter.__mro__[1]
EXIT_FAILED = 1
EXIT_WRONG = 2
EXIT_INTERRUPTED = 130


def exit_code(error: WeftError) -> int:
    """
    The exit code of an error's class.

    >>> exit_code(UnavailableError("away"))
    1
    """
    return EXIT_WRONG if error.code is Code.INVALID_ARGUMENT else EXIT_FAILED


def report(code: str, message: str, *, field: str | None = None, as_json: bool) -> None:
    """Say on stderr what went wrong."""
    if as_json:
        document: dict[str, Any] = {"code": code, "message": message, **({"field": field} if field else {})}
        sys.stderr.write(json.dumps({"error": document}) + "\n")
    else:
        sys.stderr.write(f"weft: {' '.join(message.split())}\n")


def advised(error: WeftError) -> str:
    """The error's message; one about a service that is away ends with what starts it, or with where it should be."""
    if isinstance(error, UnavailableError) and session().context:
        return f"{error.message.rstrip('.')}; `weft contexts get {session().context}` shows where it should be"
    if isinstance(error, UnavailableError) and "weft up" not in error.message:
        return f"{error.message.rstrip('.')}; `weft status` shows what runs, `weft up` starts the services"
    return error.message


class FailingWell(TyperGroup):
    """The root command: turns what its commands raise into a message and an exit code."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        before_separator = args[: args.index("--")] if "--" in args else args
        begin(Session(json="--json" in before_separator))
        # Bytes of the command line that are no UTF-8 reach Python as lone surrogates, which no message can carry.
        for number, argument in enumerate(args, start=1):
            if any("\ud800" <= character <= "\udfff" for character in argument):
                report("INVALID_ARGUMENT", f"argument {number} is not UTF-8 text; encode it so", as_json=session().json)
                raise typer.Exit(EXIT_WRONG)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        as_json = session().json
        try:
            return super().invoke(ctx)
        except WeftError as error:
            report(error.code.name, advised(error), field=error.field, as_json=as_json)
            raise typer.Exit(exit_code(error)) from error
        except _UsageError as error:
            if not as_json:
                raise
            report("INVALID_ARGUMENT", error.format_message(), as_json=True)
            raise typer.Exit(EXIT_WRONG) from error
        except OSError as error:
            report("INTERNAL", f"{error}; check the path and the permissions", as_json=as_json)
            raise typer.Exit(EXIT_FAILED) from error
        except KeyboardInterrupt as error:
            report("CANCELLED", "interrupted; work that was started on a service goes on", as_json=as_json)
            raise typer.Exit(EXIT_INTERRUPTED) from error
