"""
Reads arrays out of an .npz file, never a pickle.

An .npz is a ZIP archive of .npy files: magic, version, a header that names dtype, order and shape, the numbers. Only a
bounded directory and header are read, only floating-point dtypes are taken, a member must hold exactly the bytes that
its header describes, and an archive unfolds to at most a hundred times its size.
"""

import io
import math
import zipfile
import zlib
from typing import IO

import numpy as np

from weft_clt.formats.files import LayoutFiles
from weft_clt.formats.representation import Array
from weft_clt.formats.safetensors_reading import check_finite, table
from weft_common.errors import DataLossError

__all__ = ["NumpyArchive"]

_MAX_HEADER_BYTES = 10_000
_MAX_MEMBERS = 64
_MAX_DIRECTORY_BYTES = 8 << 20
"""Read at most to list the members, in blocks of the buffer's size."""
_BUFFER_BYTES = 1 << 20
_MAX_ARRAY_BYTES = 16 << 30
_MOST_UNFOLDED, _UNFOLDED_BYTES = 100, 1 << 20
"""Times its size that an archive may unfold to, beyond some bytes that any may: weights hardly shrink, bombs do."""
_VERSIONS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class NumpyArchive:
    """
    One archive, opened by the headers of its arrays.

    Args:
        files: Where it lies.
        name: Its name there.

    Raises:
        DataLossError: It is no such archive, or holds something else than arrays of floating-point numbers.
    """

    def __init__(self, files: LayoutFiles, name: str) -> None:
        self.key = f"{files.where}{name}"
        file = _Seekable(files, name)
        try:
            file.most_bytes = _MAX_DIRECTORY_BYTES
            self._zip = zipfile.ZipFile(io.BufferedReader(file, _BUFFER_BYTES))
            file.most_bytes = None
        except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError) as error:
            raise DataLossError(f"{self.key!r} is no .npz archive ({error}): copy it again.") from error
        members = [info for info in self._zip.infolist() if info.filename.endswith(".npy")]
        if not 1 <= len(members) <= _MAX_MEMBERS:
            raise DataLossError(f"{self.key!r} holds {len(members)} arrays: expected 1 to {_MAX_MEMBERS}.")
        size, unfolded = files.sizes()[name], sum(info.file_size for info in members)
        if unfolded > _MOST_UNFOLDED * size + _UNFOLDED_BYTES:
            raise DataLossError(
                f"{self.key!r} has {size} bytes and would unfold to {unfolded}, more than {_MOST_UNFOLDED} times as "
                "many: these are no weights."
            )
        self._arrays: dict[str, tuple[zipfile.ZipInfo, np.dtype[np.floating], bool]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for info in members:
            with self._opened(info) as member:
                shape, fortran, dtype = self._header(info, member)
                held = info.file_size - member.tell()
            if math.prod(shape) * dtype.itemsize != held:
                raise DataLossError(
                    f"{info.filename} of {self.key!r} has {held} bytes for shape {list(shape)} of {dtype}: "
                    "copy it again."
                )
            if held > _MAX_ARRAY_BYTES:
                raise DataLossError(
                    f"{info.filename} of {self.key!r} would take {held} bytes, more than {_MAX_ARRAY_BYTES}."
                )
            array = info.filename.removesuffix(".npy")
            self._arrays[array] = (info, dtype, fortran)
            self.shapes[array] = shape

    def read(self, array: str) -> Array:
        """Read one array, as float32 or, where it is that, float64. DataLossError: missing, or not finite."""
        if array not in self._arrays:
            raise DataLossError(f"{self.key!r} holds no {array}: it holds {table(self.shapes)}.")
        info, dtype, fortran = self._arrays[array]
        with self._opened(info) as member:
            self._header(info, member)
            try:
                values = _filled(member, math.prod(self.shapes[array]), dtype)
            except (zipfile.BadZipFile, EOFError, zlib.error) as error:
                raise DataLossError(f"{array} of {self.key!r} is broken ({error}): copy it again.") from error
        if dtype.itemsize != 8:
            values = values.astype(np.float32, copy=False)
        shaped: Array = values.reshape(self.shapes[array], order="F" if fortran else "C")
        return check_finite(shaped, f"{array} of {self.key!r}")

    def _opened(self, info: zipfile.ZipInfo) -> IO[bytes]:
        try:
            return self._zip.open(info)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
            raise DataLossError(f"{info.filename[:80]} of {self.key!r} cannot be read ({error}).") from error

    def _header(self, info: zipfile.ZipInfo, member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.floating]]:
        try:
            read = _VERSIONS[np.lib.format.read_magic(member)]
            shape, fortran, dtype = read(member, max_header_size=_MAX_HEADER_BYTES)
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataLossError(f"{info.filename[:80]} of {self.key!r} has a broken header ({error}).") from error
        if dtype.kind != "f" or dtype.itemsize not in (2, 4, 8):
            raise DataLossError(
                f"{info.filename[:80]} of {self.key!r} holds {dtype}: expected floating-point numbers; pickled objects "
                "are never read."
            )
        return shape, fortran, dtype


def _filled(member: IO[bytes], count: int, dtype: np.dtype[np.floating]) -> Array:
    """Read so many numbers, piece by piece: an archive read as a whole is in memory up to three times. EOFError."""
    values = np.empty(count, dtype)
    place, end = 0, values.nbytes
    raw = values.view(np.uint8)
    while place < end:
        piece = member.read(min(_BUFFER_BYTES, end - place))
        if not piece:
            raise EOFError(f"it ends at byte {place} of {end}")
        raw[place : place + len(piece)] = np.frombuffer(piece, np.uint8)
        place += len(piece)
    return values


class _Seekable(io.RawIOBase):
    """A file of a layout, as the standard library wants it; where `most_bytes` is set, more are not read."""

    def __init__(self, files: LayoutFiles, name: str) -> None:
        self._files, self._name, self._at = files, name, 0
        self._size = files.sizes()[name]
        self.most_bytes: int | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"cannot seek to {start + offset}")
        self._at = start + offset
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        length = max(0, min(len(buffer), self._size - self._at))
        if self.most_bytes is not None:
            self.most_bytes -= length
            if self.most_bytes < 0:
                raise ValueError("its directory is far too long")
        buffer[:length] = self._files.read(self._name, self._at, length) if length else b""
        self._at += length
        return length
