"""
Reads pieces of a safetensors file: 8 bytes of header length, a JSON table of tensors, their bytes.

Whatever a file claims, no more than a bounded header is read, every tensor must lie where the table leaves no gap, and
what is read must be finite numbers.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from weft_clt.formats.files import LayoutFiles
from weft_clt.formats.representation import Array, blocks
from weft_common.errors import DataLossError

__all__ = ["SafetensorsFile", "check_finite", "table"]

_MAX_HEADER_BYTES = 1 << 20
_MAX_TENSORS = 4096
_FLOATS: Mapping[str, str] = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_ITEM_BYTES: Mapping[str, int] = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8}
"""I64 is what CLT-Forge counts with; it is passed over."""


class SafetensorsFile:
    """
    One file, opened by its header.

    Args:
        files: Where it lies.
        name: Its name there.

    Raises:
        DataLossError: It is missing, or is no whole safetensors file.
    """

    def __init__(self, files: LayoutFiles, name: str) -> None:
        self._files, self._name = files, name
        self.key = f"{files.where}{name}"
        if name not in files.sizes():
            raise DataLossError(f"{self.key!r} is missing: copy the files again.")
        size = files.sizes()[name]
        length = int.from_bytes(files.read(name, 0, 8), "little") if size >= 8 else 0
        if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
            raise DataLossError(
                f"{self.key!r} is no safetensors file: its header would have {length} of {size} bytes, "
                f"at most {_MAX_HEADER_BYTES} are read."
            )
        try:
            header = json.loads(files.read(name, 8, length))
            if not isinstance(header, dict) or not 1 <= len(header.keys() - {"__metadata__"}) <= _MAX_TENSORS:
                raise ValueError(f"not a table of 1 to {_MAX_TENSORS} tensors")
            self._entries = {tensor: entry for tensor, entry in header.items() if tensor != "__metadata__"}
            self.shapes = {
                tensor: tuple(_whole(dim) for dim in entry["shape"]) for tensor, entry in self._entries.items()
            }
            spans = sorted(
                (*map(_whole, entry["data_offsets"]), math.prod(self.shapes[tensor]) * _item_bytes(entry))
                for tensor, entry in self._entries.items()
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataLossError(f"the header of {self.key!r} is broken ({error}): copy it again.") from error
        end = 0
        for span in spans:
            if len(span) != 3 or span[0] != end or span[1] - span[0] != span[2]:
                raise DataLossError(
                    f"the header of {self.key!r} describes tensors that overlap, or of other sizes: copy it again."
                )
            end = span[1]
        self._data = 8 + length
        if self._data + end != size:
            raise DataLossError(
                f"{self.key!r} has {size} bytes, its header describes {self._data + end}: copy it again."
            )

    def expect(self, shapes: Mapping[str, tuple[int, ...]], *, exactly: bool = False) -> None:
        """Compare tensors with what a layout says; `exactly` allows no others. DataLossError."""
        found = self.shapes if exactly else {name: self.shapes[name] for name in shapes if name in self.shapes}
        if dict(found) != dict(shapes):
            raise DataLossError(f"{self.key!r} holds {table(self.shapes)}: expected {table(shapes)}.")

    def read(self, tensor: str, *leading: int, rows: slice | None = None) -> Array:
        """
        Read a part of a tensor: the given leading indices, then rows of the next dim.

        Returns:
            float64 for F64, else float32, exactly.

        Raises:
            DataLossError: There is no such tensor of floating-point numbers, or one of them is not finite.
        """
        entry, shape = self._entries.get(tensor), self.shapes.get(tensor, ())
        if entry is None or entry["dtype"] not in _FLOATS:
            raise DataLossError(f"{self.key!r} holds no floating-point tensor {tensor}: it holds {table(self.shapes)}.")
        rest = shape[len(leading) :]
        item = _ITEM_BYTES[entry["dtype"]]
        start = sum(index * math.prod(shape[dim + 1 :]) for dim, index in enumerate(leading))
        if rows is not None:
            start += rows.start * math.prod(rest[1:])
            rest = (rows.stop - rows.start, *rest[1:])
        raw = self._files.read(self._name, self._data + entry["data_offsets"][0] + start * item, math.prod(rest) * item)
        array: Array = np.frombuffer(raw, dtype=_FLOATS[entry["dtype"]]).reshape(rest)
        if entry["dtype"] == "BF16":
            wide = array.astype(np.uint32)
            wide <<= 16
            array = wide.view(np.float32)
        elif entry["dtype"] == "F16":
            array = array.astype(np.float32)
        return check_finite(array, f"{tensor} of {self.key!r}")

    def read_turned(self, tensor: str, layer: int, out_FD: Array) -> None:
        """Read a layer's matrix [D, F] into one that is turned, without another copy of it in memory."""
        num_features, d_model = out_FD.shape
        for rows in blocks(d_model, num_features):
            out_FD[:, rows] = self.read(tensor, layer, rows=rows).T


def check_finite(array: Array, what: str) -> Array:
    """Return the array, or raise DataLossError where one of its numbers is NaN or infinite."""
    rows = np.atleast_1d(array)
    parts = blocks(rows.shape[0], math.prod(rows.shape[1:]))
    found = sum(rows[part].size - int(np.count_nonzero(np.isfinite(rows[part]))) for part in parts)
    if found:
        raise DataLossError(f"{what} holds {found} numbers that are NaN or infinite: no transcoder.")
    return array


def table(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Show names and shapes, the first 20 of them."""
    shown = ", ".join(f"{name[:60]} {list(shape)}" for name, shape in sorted(shapes.items())[:20])
    return shown + (f" and {len(shapes) - 20} more" if len(shapes) > 20 else "")


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 48:
        raise ValueError(f"{value!r} is no size")
    return value


def _item_bytes(entry: Mapping[str, Any]) -> int:
    if entry["dtype"] not in _ITEM_BYTES:
        raise ValueError(f"dtype {entry['dtype']!r} is not one of {', '.join(_ITEM_BYTES)}")
    return _ITEM_BYTES[entry["dtype"]]
