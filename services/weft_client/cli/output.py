"""Messages and tables on stdout: JSON for programs, rich for people."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC
from typing import Any, TypeVar

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Table
from rich.text import Text

Item = TypeVar("Item", bound=Message)


# A pipe has no width; what is read by other programs shall not be cut to that of a terminal.
_PIPE_COLUMNS = 240


def stdout() -> Console:
    """What people read, as wide as their terminal."""
    # Prompts and tokens may look like rich's markup.
    console = Console(highlight=False, markup=False, emoji=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, emoji=False, width=_PIPE_COLUMNS)


def as_dict(message: Message) -> dict[str, Any]:
    """A message with the names of its proto; fields that are not set show their default."""
    document: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return document


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    Console(soft_wrap=True, highlight=False, markup=False, emoji=False).out(
        json.dumps(document, indent=2, ensure_ascii=False)
    )


def print_list(
    noun: str, items: Iterable[Item], columns: Mapping[str, Callable[[Item], str]], *, as_json: bool
) -> None:
    """
    A list of resources.

    Args:
        noun: Key of the list in JSON, and what there is none of.
        items: The resources.
        columns: Heading and cell, left to right.
        as_json: Whether a program reads it.
    """
    found = list(items)
    if as_json:
        print_json({noun: [as_dict(item) for item in found]})
        return
    if not found:
        Console(stderr=True).print(f"no {noun} yet", highlight=False)
        return
    table = Table(box=None, pad_edge=False)
    for heading in columns:
        # An id that is cut off cannot be used in the next command.
        table.add_column(
            heading, overflow="fold" if heading in ("id", "name") else "ellipsis", no_wrap=heading not in ("id", "name")
        )
    for item in found:
        table.add_row(*(cell(item) for cell in columns.values()))
    stdout().print(table)


def print_fields(fields: Sequence[tuple[str, str]]) -> None:
    """Label and value, one a line."""
    table = Table.grid(padding=(0, 2))
    for label, value in fields:
        table.add_row(Text(label, style="dim"), value)
    stdout().print(table)


def print_one(message: Message, fields: Sequence[tuple[str, str]], *, as_json: bool) -> None:
    """One resource, as JSON or as fields."""
    if as_json:
        print_json(as_dict(message))
    else:
        print_fields(fields)


def time(stamp: Timestamp) -> str:
    """
    A time for people, UTC.

    >>> time(Timestamp(seconds=0)), time(Timestamp(seconds=86400))
    ('', '1970-01-02 00:00:00Z')
    """
    if not stamp.seconds:
        return ""
    return stamp.ToDatetime(tzinfo=UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def size(num_bytes: float) -> str:
    """
    A size for people.

    >>> size(512), size(3 << 20)
    ('512 B', '3.0 MiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"


def state(name: str) -> str:
    """
    The last word of an enum's value.

    >>> state("RUN_STATE_SUCCEEDED")
    'succeeded'
    """
    return name.rpartition("STATE_")[2].lower().replace("_", " ")
