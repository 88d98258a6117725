"""Text files, a document each, and files of JSON lines; plain, gzip or zstd."""

import codecs
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from weft_activations.adapters.decompression import COMPRESSIONS, pieces
from weft_activations.core.records import ReadBudget, Record

__all__ = ["JsonLines", "TextFiles", "lines"]


class TextFiles:
    """A file is a document."""

    suffixes = tuple(f".txt{compression}" for compression in COMPRESSIONS)

    def records(self, path: Path, name: str, field: str, budget: ReadBudget) -> Iterator[Record]:
        """Read the file's one record."""
        most = budget.limits.record_bytes
        data = bytearray()
        for piece in pieces(path, name, budget):
            if len(data) <= most:
                data += piece
        if len(data) > most:
            yield Record(1, None, f"it is longer than {most} bytes")
            return
        try:
            yield Record(1, data.decode("utf-8"))
        except UnicodeDecodeError as error:
            yield Record(1, None, f"it is not UTF-8: {error.reason} at byte {error.start}")


class JsonLines:
    """A line is a JSON object, and one of its fields a document; lines without anything are passed over."""

    suffixes = tuple(f"{name}{compression}" for name in (".jsonl", ".ndjson") for compression in COMPRESSIONS)

    def records(self, path: Path, name: str, field: str, budget: ReadBudget) -> Iterator[Record]:
        """Read the file's lines."""
        most = budget.limits.record_bytes
        for number, line in enumerate(lines(pieces(path, name, budget), most), start=1):
            if line is None:
                yield Record(number, None, f"the line is longer than {most} bytes")
            elif number == 1 and line.startswith(codecs.BOM_UTF8):
                yield _from_line(number, line.removeprefix(codecs.BOM_UTF8), field)
            elif line.strip():
                yield _from_line(number, line, field)


def lines(chunks: Iterable[bytes], most_bytes: int) -> Iterator[bytes | None]:
    r"""
    Cut a stream at its newlines; a line that is too long is None and never held.

    >>> list(lines([b"a\nbc", b"d\nabcd\n", b"e"], 3))
    [b'a', b'bcd', None, b'e']
    """
    held, is_too_long = bytearray(), False
    for chunk in chunks:
        start = 0
        while True:
            end = chunk.find(b"\n", start)
            stop = len(chunk) if end < 0 else end
            if len(held) + stop - start > most_bytes:
                held, is_too_long = bytearray(), True
            elif not is_too_long:
                held += chunk[start:stop]
            if end < 0:
                break
            yield None if is_too_long else bytes(held)
            held, is_too_long, start = bytearray(), False, end + 1
    if held or is_too_long:
        yield None if is_too_long else bytes(held)


def _from_line(number: int, line: bytes, field: str) -> Record:
    try:
        found = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Record(number, None, f"it is not UTF-8: {error.reason} at byte {error.start} of the line")
    except (ValueError, RecursionError) as error:
        return Record(number, None, f"it is not JSON: {error}"[:200])
    if not isinstance(found, dict):
        return Record(number, None, f"it is JSON but no object: {type(found).__name__}")
    if field not in found:
        return Record(number, None, f"it has no field {field!r}, only {', '.join(sorted(found)[:10])}"[:200])
    text = found[field]
    if not isinstance(text, str):
        return Record(number, None, f"its field {field!r} is no string: {type(text).__name__}")
    return Record(number, text)
