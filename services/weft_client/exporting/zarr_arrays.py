"""
Zarr, version 3 of the format: one array a split and stream, all shards one after the other.

A chunk is a row group of one layer. Where a shard does not fill its last chunk, the next one begins in the middle of
it, so blocks are written in the order of their rows and by one process.
"""

from pathlib import Path
from typing import Any

import zarr

from weft_client.exporting.formats import Extent, Rows, ShardPlace

__all__ = ["ZarrArrays"]


class ZarrArrays:
    """`activations.zarr` with `{split}/input` and `{split}/output`, float32 [layers, tokens, d_model]."""

    def __init__(self, folder: Path, extent: Extent) -> None:
        root: Any = zarr.open_group(folder / "activations.zarr", mode="a", zarr_format=3)
        root.attrs.update(dict(extent.about))
        self._arrays: dict[tuple[str, str], Any] = {}
        for split, tokens in extent.num_tokens.items():
            for stream in ("input", "output"):
                self._arrays[split, stream] = root.require_array(
                    f"{split}/{stream}",
                    shape=(extent.num_layers, tokens, extent.d_model),
                    chunks=(1, min(extent.row_group_tokens, tokens), extent.d_model),
                    dtype="float32",
                )

    def begin(self, shard: ShardPlace) -> None:
        """Nothing: the arrays are as large as they will be."""

    def write(self, shard: ShardPlace, stream: str, layer: int, row: int, rows: Rows) -> None:
        start = shard.first_row + row
        self._arrays[shard.split, stream][layer, start : start + len(rows)] = rows

    def end(self, shard: ShardPlace) -> None:
        """Nothing: each chunk is a file that is put in its place as a whole."""
