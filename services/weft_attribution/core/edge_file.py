"""
The whole graph as one safetensors file: rows in compressed form, and what the features are.

Rows leave the sweep in its own order; they go to scratch files and from there, in node order, into the file, so that
memory holds one batch however large the graph is.

Tensors of the file: `indptr` int64 [R + 1], `indices` int32 and `values` float32 [edges], by feature `layer`,
`position`, `index` int32, `activation` float32, and by row `constant` and `value` float32.
"""

import json
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from weft_common.errors import DataLossError

__all__ = ["EdgeScratch", "read_arrays", "write_arrays"]

Array = npt.NDArray[Any]
_NAMES = {"<i4": "I32", "<i8": "I64", "<f4": "F32"}


class EdgeScratch:
    """
    Rows on their way from the sweep to the file.

    Args:
        num_rows: R.
    """

    def __init__(self, num_rows: int) -> None:
        self._indices: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 closed in __exit__
        self._values: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 closed in __exit__
        self._start_R = np.zeros(num_rows, dtype=np.int64)
        self._count_R = np.zeros(num_rows, dtype=np.int64)
        self._lock = threading.Lock()
        self.num_edges = 0

    def __enter__(self) -> "EdgeScratch":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._indices.close()
        self._values.close()

    def add(self, rows: Array, dense_RN: Array) -> None:
        """Keep the edges of some rows that are not zero; several threads may add at once."""
        for row, dense_N in zip(rows.tolist(), dense_RN, strict=True):
            column = np.flatnonzero(dense_N != 0)
            indices, values = column.astype("<i4").tobytes(), dense_N[column].astype("<f4", copy=False).tobytes()
            with self._lock:
                self._start_R[row], self._count_R[row] = self.num_edges, len(column)
                self._indices.write(indices)
                self._values.write(values)
                self.num_edges += len(column)

    def row(self, row: int) -> tuple[Array, Array]:
        """Columns and values of a row that was added."""
        with self._lock:
            self._indices.flush()
            self._values.flush()
        return self._read(self._indices, row, "<i4"), self._read(self._values, row, "<f4")

    def write(
        self, path: Path, arrays: Mapping[str, Array], rows: Array | None = None, column_N: Array | None = None
    ) -> None:
        """
        Write the file.

        Args:
            path: Where to.
            arrays: What stands beside the edges.
            rows: Rows to write, in their order; all by default.
            column_N: New column of each column, ascending, -1 for those that are left out; as they are by default.
        """
        rows = np.arange(len(self._count_R)) if rows is None else rows
        self._indices.flush()
        self._values.flush()
        counts = self._count_R[rows]
        if column_N is not None:
            counts = np.array([(column_N[self._read(self._indices, row, "<i4")] >= 0).sum() for row in rows.tolist()])
        indptr = np.concatenate([[0], np.cumsum(counts)]).astype("<i8")

        def parts(dtype: str) -> Iterator[bytes]:
            for row in rows.tolist():
                found = self._read(self._indices if dtype == "<i4" else self._values, row, dtype)
                if column_N is not None:
                    moved = column_N[self._read(self._indices, row, "<i4")]
                    found = (moved if dtype == "<i4" else found)[moved >= 0]
                yield found.astype(dtype, copy=False).tobytes()

        edges = {"indices": ("<i4", parts("<i4")), "values": ("<f4", parts("<f4"))}
        write_arrays(path, {**arrays, "indptr": indptr}, edges, int(indptr[-1]))

    def _read(self, file: IO[bytes], row: int, dtype: str) -> Array:
        size = np.dtype(dtype).itemsize
        length, offset = int(self._count_R[row]) * size, int(self._start_R[row]) * size
        return np.frombuffer(os.pread(file.fileno(), length, offset), dtype=dtype)


def write_arrays(
    path: Path, arrays: Mapping[str, Array], edges: Mapping[str, tuple[str, Iterator[bytes]]], num_edges: int
) -> None:
    """Write a safetensors file of arrays and streamed edges, each of them a type and its parts."""
    header: dict[str, Any] = {}
    offset = 0
    for name, array in arrays.items():
        header[name] = {
            "dtype": _NAMES[array.dtype.str],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    for name, (dtype, _) in edges.items():
        size = num_edges * np.dtype(dtype).itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": [num_edges], "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little"))
        out.write(text)
        for array in arrays.values():
            out.write(array.tobytes())
        for _, parts in edges.values():
            out.writelines(parts)


def read_arrays(path: Path) -> dict[str, Array]:
    """
    Map the arrays of such a file; nothing is read before it is used.

    Raises:
        DataLossError: The file is damaged.
    """
    dtypes = {name: dtype for dtype, name in _NAMES.items()}
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, 1 << 20)))
        arrays: dict[str, Array] = {}
        for name, entry in header.items():
            dtype, shape = np.dtype(dtypes[entry["dtype"]]), tuple(entry["shape"])
            low, high = entry["data_offsets"]
            if high - low != int(np.prod(shape)) * dtype.itemsize or 8 + length + high > size or low < 0:
                raise ValueError(name)
            if high == low:
                arrays[name] = np.zeros(shape, dtype)
            else:
                arrays[name] = np.memmap(path, dtype=dtype, mode="r", offset=8 + length + low, shape=shape)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataLossError("the stored edges of this graph are damaged; delete the graph and make it again") from error
    return arrays
