"""
Parquet files of an index: written in row groups that a reader can ask for one by one, read by ranged requests.

A file has no time and no name in it, so that the same rows are the same bytes.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from weft_common.errors import DataLossError
from weft_store.port import ObjectStore

__all__ = ["LAYER_ROWS", "SUMMARY_ROWS", "Bytes", "Table", "TextColumn", "write_table"]

Array = npt.NDArray[Any]
LAYER_ROWS = 256
"""Features of a row group of a layer's file."""
SUMMARY_ROWS = 65_536


class Bytes:
    """Rows of bytes, all of one length: [N, n] uint8, to be told from lists of numbers."""

    def __init__(self, rows: Array) -> None:
        self.rows_Nn = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), -1)


Column = Array | Bytes | Sequence[Array]


def write_table(groups: Iterable[Mapping[str, Column]]) -> bytes:
    """
    Write a file, a row group for each of `groups`, which have the same columns.

    A column is [N], or [N, n] for lists of one length, or a sequence of N arrays, or `Bytes`.
    """
    sink = io.BytesIO()
    writer: Any = None
    try:
        for group in groups:
            table = pa.table({name: _arrow(column) for name, column in group.items()})
            if writer is None:
                writer = pq.ParquetWriter(
                    sink, table.schema, compression="zstd", write_statistics=_scalars(table), use_dictionary=False
                )
            writer.write_table(table, row_group_size=max(1, table.num_rows))
    finally:
        if writer is not None:
            writer.close()
    return sink.getvalue()


def _scalars(table: Any) -> list[str]:
    return [field.name for field in table.schema if pa.types.is_integer(field.type) or pa.types.is_floating(field.type)]


def _arrow(column: Column) -> Any:
    if isinstance(column, Bytes):
        rows = column.rows_Nn
        return pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(rows.shape[1]), len(rows), [None, pa.py_buffer(rows.tobytes())]
        )
    if isinstance(column, np.ndarray) and column.ndim == 1:
        return pa.array(column)
    if isinstance(column, np.ndarray):
        offsets = np.arange(len(column) + 1, dtype=np.int32) * column.shape[1]
        values = np.ascontiguousarray(column).reshape(-1)
    else:
        offsets = np.concatenate([[0], np.cumsum([len(each) for each in column])]).astype(np.int32)
        values = np.concatenate(column) if len(column) else np.zeros(0)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


class TextColumn:
    """
    Texts in memory, searched without a loop over them.

    >>> TextColumn(["a closing bracket", "an opening bracket", "a digit"]).with_all(["bracket", "open"]).tolist()
    [1]
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts: Any = pa.array(texts, pa.large_string())

    def with_all(self, words: Sequence[str]) -> Array:
        """Places of the texts that have every word in them, rising."""
        places = np.arange(len(self._texts))
        texts = self._texts
        for word in words:
            found = pc.match_substring(texts, word)
            places, texts = places[found.to_numpy(zero_copy_only=False)], texts.filter(found)
        return places


class _RangedFile(io.RawIOBase):
    """An object as a file that is read in ranges."""

    def __init__(self, store: ObjectStore, key: str, size_bytes: int) -> None:
        self._store, self._key, self._size_bytes, self._at = store, key, size_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size_bytes}[whence]
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        wanted = self._size_bytes - self._at if size is None or size < 0 else min(size, self._size_bytes - self._at)
        data = self._store.get(self._key, offset=self._at, length=wanted) if wanted > 0 else b""
        self._at += len(data)
        return data

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class Table:
    """
    A file in a bucket; its footer is read once.

    Args:
        store: The bucket.
        key: Where it lies.

    Raises:
        NotFoundError: There is no such object.
        DataLossError: It is no Parquet file.
    """

    def __init__(self, store: ObjectStore, key: str) -> None:
        self._store, self._key = store, key
        self._size_bytes = store.info(key).size_bytes
        try:
            with self._open(None) as file:
                self._footer = file.metadata
        except pa.ArrowInvalid as error:
            raise self._damaged(error) from error

    @property
    def num_rows(self) -> int:
        """Rows in it."""
        return int(self._footer.num_rows)

    @property
    def footer_bytes(self) -> int:
        """Of what tells where its columns lie; in memory it takes some times that."""
        return int(self._footer.serialized_size)

    def read(self, columns: Sequence[str] | None = None) -> Any:
        """Read whole columns: an Arrow table."""
        return self._read(range(self._footer.num_row_groups), columns)

    def row(self, number: int, columns: Sequence[str] | None = None) -> dict[str, Any]:
        """Read one row, as plain values by column."""
        group, first = self._group_of(number)
        found = self._read([group], columns).slice(number - first, 1).to_pylist()
        return dict(found[0])

    def rows(self, low: int, high: int, columns: Sequence[str] | None = None) -> Any:
        """Read rows `low` to `high`: an Arrow table."""
        group, first = self._group_of(low)
        last, _ = self._group_of(max(low, high - 1))
        return self._read(range(group, last + 1), columns).slice(low - first, high - low)

    def _group_of(self, number: int) -> tuple[int, int]:
        first = 0
        for group in range(self._footer.num_row_groups):
            count = self._footer.row_group(group).num_rows
            if number < first + count:
                return group, first
            first += count
        raise DataLossError(f"{self._key} has no row {number}; index the transcoder again")

    def _read(self, groups: Iterable[int], columns: Sequence[str] | None) -> Any:
        try:
            with self._open(self._footer) as file:
                return file.read_row_groups(list(groups), columns=columns, use_threads=False)
        except (pa.ArrowInvalid, OSError) as error:
            raise self._damaged(error) from error

    def _open(self, footer: Any) -> Any:
        source = pa.PythonFile(_RangedFile(self._store, self._key, self._size_bytes), mode="r")
        return pq.ParquetFile(source, metadata=footer, pre_buffer=True)

    def _damaged(self, error: Exception) -> DataLossError:
        return DataLossError(f"{self._key} cannot be read ({error}); index the transcoder again")
