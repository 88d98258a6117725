"""
Compressed activations of CLT-Forge, `activations_ctx_{context}_split_{split}.bin`.

Source: LLM-Interp/CLT-Forge at dcf4cc8, `training/compressed_activations_store.py`. A file is the length of its
metadata (uint32), the metadata as JSON, the number of items (uint32), and items: length of the name (uint32), name,
length (uint64), bytes, each compressed by itself. Integers are little-endian. Codes stand in the order [tokens, layers,
d_model]; a value is its code times the scale of its layer, or of all.

Codes are decompressed once, to a temporary file, and read from there; no more is taken out of them than the shape says.
Deviation: values are not rounded to float16 or bfloat16 again, as CLT-Forge does when it loads them. Refused: lz4,
which needs a library of its own, and asymmetric codes, which CLT-Forge writes but does not read back.
"""

import json
import math
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import zstandard

from weft_common.errors import DataLossError

__all__ = ["CompressedCache"]

Rows = npt.NDArray[np.float32]
_MAX_METADATA_BYTES = 1 << 20
_MAX_ITEMS = 16
_MAX_NAME_BYTES = 64
_MAX_SCALES = 1 << 20
_PIECE_BYTES = 4 << 20
_MAX_WINDOW_BYTES = 128 << 20
# Codes in a byte, and what is taken off a packed one.
_PACKED = {"int4": (2, 8), "int2": (4, 2)}


class CompressedCache:
    """
    One file.

    Raises:
        DataLossError: It is none, is damaged, or is of a kind that is not read; names the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._streams: list[_Stream] = []
        with self._whole(), path.open("rb") as file:
            self._described = self._metadata(file)
            shapes = [_shape(self._described[f"original_shape_{which}"]) for which in ("in", "out")]
            if shapes[0] != shapes[1]:
                raise ValueError(f"inputs are of shape {shapes[0]}, outputs of {shapes[1]}")
            self._codes_shape = shapes[0]
            tokens, layers, width = shapes[0]
            self.shape = layers, tokens, width
            self._check_kind()

    @contextmanager
    def _whole(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, KeyError, TypeError, struct.error, RecursionError, zstandard.ZstdError) as error:
            raise DataLossError(f"{self._path} is no whole cache of CLT-Forge ({error}): copy it again.") from error

    def _check_kind(self) -> None:
        kind, by = self._described["quantization"], self._described["compression"]
        if by not in ("zstd", "none") or kind not in ("none", "int8", "int4", "int2"):
            raise DataLossError(
                f"{self._path} is of {kind} and {by}: none, int8, int4 and int2 are read, with zstd or without "
                "compression. Write it again."
            )
        if kind != "none" and not self._described["symmetric"]:
            raise DataLossError(f"{self._path} is of asymmetric codes, which CLT-Forge cannot read: write it anew.")

    def _load(self) -> None:
        with self._whole(), self._path.open("rb") as file:
            self._metadata(file)
            items = self._items(file)
            try:
                for which in ("in", "out"):
                    self._streams.append(_Stream(file, items, self._described, which, self._codes_shape))
            except BaseException:
                self.close()
                raise

    def _metadata(self, file: BinaryIO) -> dict[str, Any]:
        (length,) = struct.unpack("<I", file.read(4))
        if not 2 <= length <= _MAX_METADATA_BYTES:
            raise ValueError(f"its metadata would have {length} bytes")
        metadata = json.loads(file.read(length))
        if not isinstance(metadata, dict):
            raise ValueError("its metadata is no object")
        return metadata

    def _items(self, file: BinaryIO) -> dict[str, tuple[int, int]]:
        """Offset and length of each item, by name."""
        size = self._path.stat().st_size
        (count,) = struct.unpack("<I", file.read(4))
        if count > _MAX_ITEMS:
            raise ValueError(f"it would have {count} items")
        items: dict[str, tuple[int, int]] = {}
        for _ in range(count):
            (length,) = struct.unpack("<I", file.read(4))
            if length > _MAX_NAME_BYTES:
                raise ValueError(f"an item's name would have {length} bytes")
            name = file.read(length).decode()
            (length,) = struct.unpack("<Q", file.read(8))
            if file.tell() + length > size:
                raise ValueError(f"item {name} goes past its end")
            items[name] = file.tell(), length
            file.seek(length, 1)
        if file.tell() != size:
            raise ValueError("bytes follow its last item")
        return items

    def read(self, start: int, stop: int) -> tuple[Rows, Rows]:
        if not self._streams:
            self._load()
        inputs, outputs = (stream.read(start, stop) for stream in self._streams)
        for name, rows in (("act_in", inputs), ("act_out", outputs)):
            if not np.isfinite(rows).all():
                raise DataLossError(f"{name} of {self._path} has values that are not finite: leave the file out.")
        return inputs, outputs

    def close(self) -> None:
        """Remove the temporary files."""
        for stream in self._streams:
            stream.codes.close()
        self._streams = []


class _Stream:
    """Inputs or outputs of one file, decompressed."""

    def __init__(
        self,
        file: BinaryIO,
        items: dict[str, tuple[int, int]],
        metadata: dict[str, Any],
        which: str,
        shape: tuple[int, int, int],
    ) -> None:
        scale_shape = tuple(int(dim) for dim in metadata[f"scale_shape_{which}"])
        self._shape, self._kind = shape, str(metadata["quantization"])
        self._per_byte, self._less = _PACKED.get(self._kind, (1, 0))
        num_values, num_scales = math.prod(shape), math.prod(scale_shape)
        if (shape[1] * shape[2]) % self._per_byte:
            raise ValueError(f"a token's {shape[1] * shape[2]} codes of {self._kind} end within a byte")
        if num_scales > _MAX_SCALES or len(scale_shape) > 3:
            raise ValueError(f"its scales would be of shape {scale_shape}")
        zstd = metadata["compression"] == "zstd"
        self._code: np.dtype[Any] = np.dtype({"none": "<f2", "int8": "i1"}.get(self._kind, "u1"))
        with _taken(file, items[f"act_{which}_scale"], 4 * num_scales, zstd) as scales:
            self._scale = np.frombuffer(scales.read(), "<f4").reshape(scale_shape)
        self.codes = _taken(file, items[f"act_{which}_data"], num_values // self._per_byte * self._code.itemsize, zstd)

    def read(self, start: int, stop: int) -> Rows:
        """Float32 [layers, tokens, d_model]."""
        token_bytes = self._shape[1] * self._shape[2] // self._per_byte * self._code.itemsize
        self.codes.seek(start * token_bytes)
        codes = np.frombuffer(self.codes.read((stop - start) * token_bytes), self._code)
        if self._kind in _PACKED:
            codes = self._unpacked(codes)
        values = codes.astype(np.float32).reshape(stop - start, *self._shape[1:])
        values *= self._scale
        return np.ascontiguousarray(values.swapaxes(0, 1))

    def _unpacked(self, packed: npt.NDArray[Any]) -> npt.NDArray[np.int8]:
        """Codes of 4 bits, the low half first, or of 2 bits, the highest first."""
        shifts = (0, 4) if self._kind == "int4" else (6, 4, 2, 0)
        mask = 0x0F if self._kind == "int4" else 0x03
        codes = np.empty((len(packed), self._per_byte), np.int8)
        for place, shift in enumerate(shifts):
            codes[:, place] = ((packed >> shift) & mask).astype(np.int8) - self._less
        return codes.reshape(-1)


def _shape(given: Any) -> tuple[int, int, int]:
    tokens, layers, width = (int(dim) for dim in given)
    if not (tokens >= 1 and 1 <= layers <= 1024 and 1 <= width <= 1 << 16):
        raise ValueError(f"its shape would be {given}")
    return tokens, layers, width


class _Item:
    """The bytes of one item, as something to read from."""

    def __init__(self, file: BinaryIO, offset: int, length: int) -> None:
        file.seek(offset)
        self._file, self._left = file, length

    def read(self, size: int) -> bytes:
        data = self._file.read(min(size, self._left))
        self._left -= len(data)
        return data


def _taken(file: BinaryIO, item: tuple[int, int], size: int, zstd: bool) -> BinaryIO:
    """Take an item out, to a temporary file of exactly so many bytes; never more than a piece of it is in memory."""
    out: Any = tempfile.TemporaryFile(prefix="weft-import-")  # noqa: SIM115  open until its part is closed
    source: Any = _Item(file, *item)
    if zstd:
        source = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES).stream_reader(source)
    try:
        _copy(source, out, size)
    except BaseException:
        out.close()
        raise
    out.seek(0)
    taken: BinaryIO = out
    return taken


def _copy(source: Any, out: Any, size: int) -> None:
    written = 0
    while data := source.read(min(_PIECE_BYTES, size - written + 1)):
        written += len(data)
        if written > size:
            raise ValueError(f"an item has more than the {size} bytes of its shape")
        out.write(data)
    if written != size:
        raise ValueError(f"an item has only {written} bytes of {size}")
