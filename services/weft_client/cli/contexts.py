"""`weft contexts`."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from weft_client.cli.output import print_fields, print_json, stdout
from weft_client.cli.session import JsonFlag, warn
from weft_client.contexts import ContextFile, default_path, merged
from weft_client.endpoints import ENTRY_KEYS, SERVICES
from weft_common.errors import InvalidArgumentError

app = typer.Typer(no_args_is_help=True, help="Named sets of services that this command can talk to.")
ContextArgument = Annotated[str, typer.Argument(help="Name of the context.")]


def _read() -> ContextFile:
    found = ContextFile.read(default_path())
    warn(found.mode_problem())
    return found


def _services(context: Mapping[str, Any]) -> list[str]:
    return [service for service in SERVICES if service in context]


def _shown(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry without the token itself."""
    return {key: "(in this file)" if key == "token" else value for key, value in entry.items()}


@app.command("list")
def list_contexts(as_json: JsonFlag = False) -> None:
    """List contexts; a star marks the current one."""
    found = _read()
    if as_json:
        contexts = [{"name": name, "services": _services(each)} for name, each in sorted(found.contexts.items())]
        print_json({"contexts": contexts, "current": found.current, "path": str(found.path)})
        return
    table = Table("", "name", "services", box=None, pad_edge=False)
    for name, context in sorted(found.contexts.items()):
        table.add_row("*" if name == found.current else "", name, ", ".join(_services(context)))
    if found.contexts:
        stdout().print(table)
    else:
        sys.stderr.write(f"no contexts yet in {found.path}; `weft contexts set` makes one\n")


@app.command("get")
def get_context(context: ContextArgument, as_json: JsonFlag = False) -> None:
    """Describe one context; tokens are not shown."""
    found = _read()
    written = found.named(context)
    entries = {service: _shown(merged(written, service)) for service in _services(written)}
    if as_json:
        print_json({"name": context, "current": context == found.current, "services": entries})
        return
    fields = [("name", context), ("current", "yes" if context == found.current else "no")]
    fields += [
        (service, ", ".join(f"{key} {value}" for key, value in entry.items())) for service, entry in entries.items()
    ]
    print_fields(fields)


@app.command("use")
def use_context(
    context: Annotated[str, typer.Argument(help="Name of the context.")] = "",
    none: Annotated[bool, typer.Option("--none", help="Go back to the embedded run of the working folder.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Make a context the one that commands use where none is named."""
    if none == bool(context):
        raise InvalidArgumentError("give the name of a context, or --none")
    _read().using(context).write()
    if as_json:
        print_json({"current": context})
    else:
        stdout().print(f"the current context is {context}" if context else "there is no current context", markup=False)


@app.command("set")
def set_context(
    context: ContextArgument,
    service: Annotated[str, typer.Option(help=f"{', '.join(SERVICES)}; default: keys that all services share.")] = "",
    target: Annotated[str | None, typer.Option(help="host:port of the service.")] = None,
    url: Annotated[str | None, typer.Option(help="For the console: address of its page.")] = None,
    token_stdin: Annotated[bool, typer.Option("--token-stdin", help="Keep the token that stdin holds.")] = False,
    token_file: Annotated[Path | None, typer.Option(help="File that holds the token.")] = None,
    token_env: Annotated[str | None, typer.Option(help="Environment variable that holds the token.")] = None,
    tls: Annotated[bool | None, typer.Option(help="TLS by the system's authorities, or in the clear.")] = None,
    tls_ca: Annotated[Path | None, typer.Option(help="Certificate of the authority to trust.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="For mTLS: this client's certificate.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="For mTLS: its key.")] = None,
    tls_server_name: Annotated[str | None, typer.Option(help="Name in the services' certificates.")] = None,
    unset: Annotated[list[str] | None, typer.Option(help="Key to take out; may be repeated.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make or change a context; a token is never taken from the command line."""
    if target and not service:
        raise InvalidArgumentError("--target belongs to one service; give --service too")
    if sum((token_stdin, token_file is not None, token_env is not None)) > 1:
        raise InvalidArgumentError("a token has one place; give one of --token-stdin, --token-file and --token-env")
    if unknown := set(unset or ()) - set(ENTRY_KEYS):
        raise InvalidArgumentError(f"--unset {unknown.pop()} is no key; give one of {', '.join(ENTRY_KEYS)}")
    files = {"token_file": token_file, "tls_ca": tls_ca, "tls_cert": tls_cert, "tls_key": tls_key}
    given: dict[str, Any] = {
        "target": target,
        "url": url,
        "token": sys.stdin.readline().strip() if token_stdin else None,
        "token_env": token_env,
        "tls": tls,
        "tls_server_name": tls_server_name,
        **{key: str(path.absolute()) if path else None for key, path in files.items()},
    }
    keys = {key: value for key, value in given.items() if value is not None} | dict.fromkeys(unset or ())
    found = _read().with_keys(context, service, keys)
    # Nothing is written that the next command would refuse.
    if all({"target", "url"} & each.keys() for name, each in found.contexts[context].items() if name in SERVICES):
        found.endpoints(context)
    found.write()
    get_context(context, as_json=as_json)


@app.command("delete")
def delete_context(context: ContextArgument, as_json: JsonFlag = False) -> None:
    """Forget a context; nothing happens to its services."""
    _read().without(context).write()
    if as_json:
        print_json({"deleted": context})
    else:
        stdout().print(f"{context} is deleted")
