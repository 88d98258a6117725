"""
Parquet, one file a shard and layer, in folders that readers of partitioned data know.

A row is a token: its row in the shard, and input and output as lists of fixed size. A row group of the file is one of
the shard, so a writer holds two blocks.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from weft_client.exporting.formats import Extent, Rows, ShardPlace

__all__ = ["ParquetFiles"]


class ParquetFiles:
    """`split={split}/layer={layer}/shard-{index}.parquet` with `row`, `input` and `output`."""

    def __init__(self, folder: Path, extent: Extent) -> None:
        self._folder, self._extent = folder, extent
        vector = pa.list_(pa.field("element", pa.float32(), nullable=False), extent.d_model)
        fields = [pa.field(name, kind, nullable=False) for name, kind in (("row", pa.int64()), ("input", vector))]
        self._schema = pa.schema([*fields, pa.field("output", vector, nullable=False)], metadata=dict(extent.about))
        self._vector = vector
        self._file: Any = None
        self._layer = -1
        self._input: tuple[int, Rows] | None = None

    def begin(self, shard: ShardPlace) -> None:
        self._close()

    def write(self, shard: ShardPlace, stream: str, layer: int, row: int, rows: Rows) -> None:
        if layer != self._layer:
            self._close()
            path = self._path(shard, layer)
            path.parent.mkdir(parents=True, exist_ok=True)
            # Activations hardly repeat: dictionaries would only be built and thrown away.
            self._file = pq.ParquetWriter(path, self._schema, compression="zstd", use_dictionary=False)
            self._layer = layer
        if stream == "input":
            self._input = row, rows
            return
        assert self._input is not None
        assert self._input[0] == row
        columns = [
            pa.array(np.arange(row, row + len(rows), dtype=np.int64)),
            *map(self._column, (self._input[1], rows)),
        ]
        self._file.write_table(pa.Table.from_arrays(columns, schema=self._schema), row_group_size=len(rows))
        self._input = None

    def end(self, shard: ShardPlace) -> None:
        self._close()
        for layer in range(self._extent.num_layers):
            with open(self._path(shard, layer), "rb") as file:
                os.fsync(file.fileno())

    def _column(self, rows: Rows) -> Any:
        return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), type=self._vector)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file, self._layer, self._input = None, -1, None

    def _path(self, shard: ShardPlace, layer: int) -> Path:
        return self._folder / f"split={shard.split}" / f"layer={layer}" / f"shard-{shard.index:05d}.parquet"
