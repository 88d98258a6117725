"""The commands of the embedded run."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from weft_client.local.bucket import ACCESS_KEY_VARIABLE, SECRET_KEY_VARIABLE, Bucket
from weft_client.local.control import check_health, start, stop
from weft_client.local.layout import Layout
from weft_client.local.supervisor import supervise, supervisor_pid
from weft_common.errors import NotFoundError

FolderOption = Annotated[
    Path, typer.Option("--folder", help="Where bucket, models, logs and endpoints lie.", file_okay=False)
]
BucketOption = Annotated[
    str | None,
    typer.Option(
        "--bucket",
        metavar="URL",
        help=(
            "Keep everything in this bucket, such as s3+https://host/bucket, in place of a folder; its keys are taken "
            f"from {ACCESS_KEY_VARIABLE} and {SECRET_KEY_VARIABLE}."
        ),
    ),
]
DEFAULT_FOLDER = Path(".weft")


def named_bucket(url: str | None) -> Bucket | None:
    """Return the bucket that was named on the command line, with keys from the environment; None where none was."""
    return None if url is None else Bucket.named(url, os.environ)


def up(
    folder: FolderOption = DEFAULT_FOLDER,
    bucket: BucketOption = None,
    console_port: Annotated[int, typer.Option(help="Port of the page; 0 takes any free one.")] = 0,
    foreground: Annotated[bool, typer.Option(help="Stay here and stop with Ctrl-C.")] = False,
) -> None:
    """Start the five services on this machine."""
    layout = Layout(folder.resolve())
    named = named_bucket(bucket)
    if foreground:
        if named is not None:
            named.check()
        supervise(layout, bucket=named, console_port=console_port)
        return
    console = Console(stderr=True)
    with console.status("Starting the services") as status:
        endpoints = start(
            layout,
            bucket=named,
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
        Console().print(f"bucket: {layout.read_bucket_url()}", soft_wrap=True, markup=False)
    if not all(health.serving for health in services):
        raise typer.Exit(1)
