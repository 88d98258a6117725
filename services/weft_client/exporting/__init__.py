"""
Datasets as files of formats that others read: safetensors, Parquet, Zarr.

    READ (one block of one layer at a time, float32) -> WRITE (to its place in a file) -> NOTE (the shard is done)

Memory holds one block, a row group of one stream at one layer, or two; never a shard. The layouts are specified in
`docs/reference/dataset-formats.md`.
"""

from weft_client.exporting.formats import FORMATS
from weft_client.exporting.run import export_dataset

__all__ = ["FORMATS", "export_dataset"]
