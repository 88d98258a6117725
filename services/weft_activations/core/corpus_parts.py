"""
Documents packed into parts: many to an object, so that a corpus of a million lines is not a million objects.

A part is one zstd frame over lines, each a JSON string.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import zstandard

from weft_common.errors import DataLossError, NotFoundError
from weft_store.port import ObjectStore

__all__ = ["CorpusPart", "read_part", "write_parts"]

_PART_BYTES = 4 << 20
_LEVEL = 3


@dataclass(frozen=True)
class CorpusPart:
    """
    An object with documents.

    Attributes:
        sha256: Hex, of the object.
        num_documents: How many are in it.
        packed_bytes: What the object decompresses to.
    """

    key: str
    sha256: str
    num_documents: int
    packed_bytes: int


def write_parts(
    store: ObjectStore, texts: Iterable[str], key: Callable[[int], str], wrote: Callable[[CorpusPart], None]
) -> None:
    """
    Pack documents, in order.

    Args:
        store: The bucket.
        texts: The documents.
        key: Gives the key of the n-th part.
        wrote: Called with each part once it is stored.
    """
    lines: list[bytes] = []
    size, count = 0, 0

    def flush() -> None:
        nonlocal size, count
        packed = b"".join(lines)
        data = zstandard.ZstdCompressor(level=_LEVEL).compress(packed)
        part = CorpusPart(key(count), hashlib.sha256(data).hexdigest(), len(lines), len(packed))
        store.put(part.key, data)
        wrote(part)
        lines.clear()
        size, count = 0, count + 1

    for text in texts:
        line = json.dumps(text, ensure_ascii=False).encode() + b"\n"
        if lines and size + len(line) > _PART_BYTES:
            flush()
        lines.append(line)
        size += len(line)
    if lines:
        flush()


def read_part(store: ObjectStore, part: CorpusPart) -> list[str]:
    """
    Read the documents of a part.

    Raises:
        DataLossError: The object is gone or is not what the manifest says.
    """
    try:
        data = store.get(part.key)
    except NotFoundError:
        raise DataLossError(f"object {part.key!r} is gone; import the corpus anew") from None
    if hashlib.sha256(data).hexdigest() != part.sha256:
        raise DataLossError(f"object {part.key!r} does not have the SHA-256 of its manifest; import the corpus anew")
    packed = zstandard.ZstdDecompressor().decompress(data, max_output_size=part.packed_bytes)
    return [json.loads(line) for line in packed.removesuffix(b"\n").split(b"\n")]
