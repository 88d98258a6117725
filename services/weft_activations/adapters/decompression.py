"""The bytes of a file that may be compressed, in pieces, each counted before the next one is made."""

import zlib
from collections.abc import Iterator
from pathlib import Path

import zstandard

from weft_activations.core.records import ReadBudget
from weft_common.errors import FailedPreconditionError

__all__ = ["COMPRESSIONS", "pieces"]

COMPRESSIONS = ("", ".gz", ".zst")
"""Ends of names; the first means as it is."""

_PIECE_BYTES = 1 << 18
_GZIP = 31  # zlib's number for a header and a checksum of gzip
# zstd takes input, not output, in steps. Four bytes may become a block of 128 KiB, so that one step is 32 MiB at most.
_ZSTD_STEP_BYTES = 1 << 10
# What `zstd --long` uses; a frame that wants a larger window is refused before memory is taken for it.
_ZSTD_WINDOW_BYTES = 1 << 27


def pieces(path: Path, name: str, budget: ReadBudget) -> Iterator[bytes]:
    """
    Read a file, decompressed as its name says.

    Raises:
        FailedPreconditionError: It is cut off or damaged, or becomes more than the budget allows.
    """
    suffix = name.rpartition(".")[2]
    made = {"gz": _gzip, "zst": _zstd}.get(suffix, _plain)(path)
    try:
        for piece in made:
            budget.spend(len(piece))
            yield piece
    except (EOFError, zlib.error, zstandard.ZstdError) as error:
        raise FailedPreconditionError(
            f"{name} is cut off or no {suffix} file ({error}); store it anew and import again", field="spec.source"
        ) from None


def _plain(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            yield piece


def _gzip(path: Path) -> Iterator[bytes]:
    member = zlib.decompressobj(_GZIP)
    begun = False
    with path.open("rb") as file:
        while data := file.read(_PIECE_BYTES):
            while data:
                # Between members there may be zeros, as tar leaves them.
                data = data if begun else data.lstrip(b"\0")
                begun = begun or bool(data)
                yield member.decompress(data, _PIECE_BYTES)
                data = member.unconsumed_tail
                if member.eof:
                    data = member.unused_data
                    member, begun = zlib.decompressobj(_GZIP), False
        while begun and (piece := member.decompress(b"", _PIECE_BYTES)):
            yield piece
    if begun and not member.eof:
        raise EOFError("its last member does not end")


def _zstd(path: Path) -> Iterator[bytes]:
    context = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
    frame = context.decompressobj()
    begun = False
    with path.open("rb") as file:
        while data := file.read(_ZSTD_STEP_BYTES):
            while data:
                begun = True
                yield frame.decompress(data)
                data = b""
                if frame.eof:
                    data = frame.unused_data
                    frame, begun = context.decompressobj(), False
    if begun:
        raise EOFError("its last frame does not end")
