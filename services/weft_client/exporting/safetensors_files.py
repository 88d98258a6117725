"""
safetensors, one file a shard: the header first, then blocks at their places.

The file is 8 bytes with the header's length (little-endian), the header as JSON, and the tensors one after the other
without gaps. Every place follows from shapes, so blocks are written as they come and nothing is collected.
"""

import json
import os
from pathlib import Path
from typing import Any, BinaryIO

from weft_client.exporting.formats import Extent, Rows, ShardPlace

__all__ = ["SafetensorsFiles"]

_STREAMS = ("input", "output")
_F32 = 4


class SafetensorsFiles:
    """`{split}/shard-{index}.safetensors` with `input.{layer}` and `output.{layer}`, F32 [tokens, d_model]."""

    def __init__(self, folder: Path, extent: Extent) -> None:
        self._folder, self._extent = folder, extent
        self._file: BinaryIO | None = None
        self._start = 0

    def begin(self, shard: ShardPlace) -> None:
        self._close()
        path = self._path(shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        header = self._header(shard)
        self._start = 8 + len(header)
        file = open(_partial(path), "w+b")  # noqa: SIM115  open from one block to the next
        self._file = file
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(self._start + 2 * self._extent.num_layers * self._tensor_bytes(shard))

    def write(self, shard: ShardPlace, stream: str, layer: int, row: int, rows: Rows) -> None:
        assert self._file is not None
        tensor = _STREAMS.index(stream) * self._extent.num_layers + layer
        self._file.seek(self._start + tensor * self._tensor_bytes(shard) + row * self._extent.d_model * _F32)
        self._file.write(rows.astype("<f4", copy=False).tobytes())

    def end(self, shard: ShardPlace) -> None:
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        self._close()
        path = self._path(shard)
        os.replace(_partial(path), path)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _path(self, shard: ShardPlace) -> Path:
        return self._folder / shard.split / f"shard-{shard.index:05d}.safetensors"

    def _tensor_bytes(self, shard: ShardPlace) -> int:
        return shard.num_tokens * self._extent.d_model * _F32

    def _header(self, shard: ShardPlace) -> bytes:
        size = self._tensor_bytes(shard)
        document: dict[str, Any] = {}
        document["__metadata__"] = {**self._extent.about, "shard": str(shard.index), "split": shard.split}
        for at, stream in enumerate(_STREAMS):
            for layer in range(self._extent.num_layers):
                start = (at * self._extent.num_layers + layer) * size
                document[f"{stream}.{layer}"] = {
                    "dtype": "F32",
                    "shape": [shard.num_tokens, self._extent.d_model],
                    "data_offsets": [start, start + size],
                }
        header = json.dumps(document, separators=(",", ":")).encode()
        return header + b" " * (-len(header) % 8)


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")
