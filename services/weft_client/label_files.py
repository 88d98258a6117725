"""
Labels as files: CSV for spreadsheets, JSON lines for programs, both ways.

Both have one label a row with the fields of `weft.features.v1.Label`. A spreadsheet takes a cell that begins with `=`,
`+`, `-` or `@` for a formula; such a cell is written with an apostrophe before it, which reading takes away again.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from typing import Any

from weft.features.v1 import labels_pb2
from weft_common.errors import InvalidArgumentError

__all__ = ["FORMATS", "MAX_FILE_BYTES", "format_of", "read_labels", "write_labels"]

FORMATS = ("csv", "jsonl")
MAX_FILE_BYTES = 256 << 20
_NUMBERS = ("layer", "index")
_TEXTS = ("text", "origin", "author", "explainer", "prompt", "prompt_sha256")
_TOLD = ("revision", "create_time")
_COLUMNS = (*_NUMBERS, *_TEXTS, *_TOLD)
_ORIGINS = {"human": labels_pb2.LABEL_ORIGIN_HUMAN, "model": labels_pb2.LABEL_ORIGIN_MODEL}
_FORMULA = tuple("=+-@\t\r'")
_MAX_LINE = 1 << 16


def format_of(name: str) -> str:
    """
    The format that a file's name ends in.

    >>> format_of("labels.jsonl")
    'jsonl'
    """
    found = name.rpartition(".")[2].lower()
    if found not in FORMATS:
        raise InvalidArgumentError(f"{name} ends in neither .csv nor .jsonl; name the format with --format")
    return found


def write_labels(labels: Iterable[labels_pb2.Label], layout: str) -> Iterator[str]:
    """The lines of a file, with their ends; a CSV begins with the names of its columns."""
    if layout == "csv":
        yield _csv_line(_COLUMNS)
    for label in labels:
        row = {name: getattr(label, name) for name in (*_NUMBERS, *_TEXTS, "revision")}
        row["origin"] = "model" if label.origin == labels_pb2.LABEL_ORIGIN_MODEL else "human"
        row["create_time"] = label.create_time.ToJsonString() if label.HasField("create_time") else ""
        if layout == "csv":
            yield _csv_line([_shielded(str(row[name])) for name in _COLUMNS])
        else:
            yield json.dumps({name: row[name] for name in _COLUMNS}, ensure_ascii=False) + "\n"


def read_labels(lines: Iterable[str], layout: str, name: str) -> Iterator[labels_pb2.Label]:
    """
    The labels of a file; `revision`, `create_time` and what else is not a label's own are passed over.

    Args:
        lines: The file, line by line, with their ends.
        layout: One of FORMATS.
        name: Of the file, for messages.

    Raises:
        InvalidArgumentError: A row is no label; the message names its line.
    """
    rows = _csv_rows(lines, name) if layout == "csv" else _json_rows(lines, name)
    for number, row in rows:
        yield _label(row, f"{name}:{number}")


def _csv_line(cells: Iterable[str]) -> str:
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerow(cells)
    return written.getvalue()


def _shielded(cell: str) -> str:
    """
    A cell that no spreadsheet takes for a formula.

    >>> _shielded("=1+1"), _shielded("1+1")
    ("'=1+1", '1+1')
    """
    return f"'{cell}" if cell.startswith(_FORMULA) else cell


def _bare(cell: str) -> str:
    return cell[1:] if cell[:1] == "'" and cell[1:].startswith(_FORMULA) else cell


def _csv_rows(lines: Iterable[str], name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(_bounded(lines, name), strict=True)
    try:
        for row in reader:
            if None in row:
                raise InvalidArgumentError(f"{name}:{reader.line_num} has more cells than the first line has columns")
            yield reader.line_num, {column: _bare(cell or "") for column, cell in row.items()}
    except csv.Error as error:
        raise InvalidArgumentError(f"{name}:{reader.line_num} is no CSV ({error})") from error


def _json_rows(lines: Iterable[str], name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_bounded(lines, name), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InvalidArgumentError(f"{name}:{number} is no JSON ({error})") from error
        if not isinstance(row, dict):
            raise InvalidArgumentError(f'{name}:{number} is no object, such as {{"layer": 0, "index": 5, "text": ...}}')
        yield number, row


def _bounded(lines: Iterable[str], name: str) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if len(line) > _MAX_LINE:
            raise InvalidArgumentError(f"{name}:{number} has {len(line)} characters; a label has far fewer")
        yield line


def _label(row: dict[str, Any], place: str) -> labels_pb2.Label:
    found: dict[str, Any] = {}
    for name in _NUMBERS:
        value = row.get(name)
        text = "" if isinstance(value, bool) else str(value)
        if not (text.isascii() and text.isdecimal() and len(text) <= 9):
            raise InvalidArgumentError(f"{place}: {name} is {value!r:.60}; it is a number from 0")
        found[name] = int(text)
    for name in _TEXTS:
        value = row.get(name, "")
        if not isinstance(value, str):
            raise InvalidArgumentError(f"{place}: {name} is {value!r:.60}; it is text")
        found[name] = value
    if not found["text"].strip():
        raise InvalidArgumentError(f"{place}: there is no text; a label has some")
    origin = found["origin"] or "human"
    if origin not in _ORIGINS:
        raise InvalidArgumentError(f"{place}: origin is {origin!r:.60}; it is human or model")
    return labels_pb2.Label(**{**found, "origin": _ORIGINS[origin]})
