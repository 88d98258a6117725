"""The commands of the embedded run."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from weft_client.local.control import check_health, start, stop
from weft_client.local.layout import Layout
from weft_client.local.supervisor import supervise, supervisor_pid
from weft_common.errors import NotFoundError

FolderOption = Annotated[
    Path, typer.Option("--folder", help="Where bucket, models, logs and endpoints lie.", file_okay=False)
]
DEFAULT_FOLDER = Path(".weft")


def up(
    folder: FolderOption = DEFAULT_FOLDER,
    console_port: Annotated[int, typer.Option(help="Port of the page; 0 takes any free one.")] = 0,
    foreground: Annotated[bool, typer.Option(help="Stay here and stop with Ctrl-C.")] = False,
) -> None:
    """Start the five services on this machine."""
    layout = Layout(folder.resolve())
    if foreground:
        supervise(layout, console_port=console_port)
        return
    console = Console(stderr=True)
    with console.status("Starting the services") as status:
        endpoints = start(
            layout,
            console_port=console_port,
            on_wait=lambda waiting: status.update(f"Waiting for {', '.join(waiting)}"),
        )
    Console().print(f"weft runs. The page: {endpoints.page('')}", soft_wrap=True)


def down(folder: FolderOption = DEFAULT_FOLDER) -> None:
    """Stop the services; the bucket stays."""
    stopped = stop(Layout(folder.resolve()))
    Console().print("weft is stopped." if stopped else "Nothing was running.")


def status(
    folder: FolderOption = DEFAULT_FOLDER,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show which services run and whether they serve; exit 1 where one does not."""
    layout = Layout(folder.resolve())
    if supervisor_pid(layout) is None:
        raise NotFoundError(f"No weft runs in {layout.root}: start one with `weft up`.")
    services = check_health(layout.read_endpoints())
    if as_json:
        document = [
            {
                "service": health.name,
                "target": health.endpoint.target,
                "metrics_port": health.endpoint.metrics_port,
                "serving": health.serving,
                "log": str(layout.log_path(health.name)),
            }
            for health in services
        ]
        typer.echo(json.dumps(document, indent=2))
    else:
        table = Table("service", "target", "metrics", "state", "log")
        for health in services:
            table.add_row(
                health.name,
                health.endpoint.target,
                str(health.endpoint.metrics_port),
                "serving" if health.serving else "[red]not serving[/red]",
                str(layout.log_path(health.name).relative_to(layout.root.parent)),
            )
        Console().print(table)
    if not all(health.serving for health in services):
        raise typer.Exit(1)
