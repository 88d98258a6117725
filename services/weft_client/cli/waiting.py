"""A progress bar for long work."""

from typing import Any

from google.longrunning import operations_pb2
from google.protobuf.message import Message
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from weft_client.cli.output import as_dict, print_json, stdout
from weft_client.sync.client import Client


def wait(client: Client, operation: operations_pb2.Operation, title: str, *, quiet: bool) -> Message:
    """
    Wait for an operation with a bar on stderr.

    Args:
        client: Who asks.
        operation: What a create returned.
        title: What stands before the bar.
        quiet: Shows nothing.
    """
    if quiet:
        return client.operations.wait(operation)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        bar = bars.add_task(title, total=None, unit="")

        def show(metadata: Any) -> None:
            now = metadata.progress
            bars.update(
                bar, completed=now.completed, total=now.total or None, unit=now.unit, description=now.stage or title
            )

        return client.operations.wait(operation, progress=show)


def print_started(operation: operations_pb2.Operation, name: str, *, validated: bool, as_json: bool) -> None:
    """What a create that is not waited for says."""
    if as_json:
        print_json({"name": name, "operation": operation.name, "validated_only": validated})
    elif validated:
        stdout().print(f"{name} would be accepted; nothing was changed")
    else:
        stdout().print(f"{name} is under way as {operation.name}")


def print_result(result: Message, line: str, *, as_json: bool) -> None:
    """What a create that was waited for says."""
    if as_json:
        print_json(as_dict(result))
    else:
        stdout().print(line, soft_wrap=True)
