"""What a format is to an export, and which there are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from weft_common.errors import FailedPreconditionError

__all__ = ["FORMATS", "Extent", "ShardPlace", "Writer", "open_writer"]

Rows = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Extent:
    """
    What is exported.

    Args:
        num_layers: Of the model.
        d_model: Width of inputs and outputs.
        row_group_tokens: Tokens of the largest block.
        num_tokens: By split, `train` and `held_out`; only those that have any.
        about: Facts that are written beside the numbers, as text.
    """

    num_layers: int
    d_model: int
    row_group_tokens: int
    num_tokens: Mapping[str, int]
    about: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ShardPlace:
    """
    One shard of an export.

    Args:
        index: In the dataset.
        split: `train` or `held_out`.
        num_tokens: At least 1.
        first_row: Tokens of the same split in the shards before it.
    """

    index: int
    split: str
    num_tokens: int
    first_row: int


class Writer(Protocol):
    """Writes shards one after the other, each layer by layer."""

    def begin(self, shard: ShardPlace) -> None:
        """Make room for a shard; what an earlier attempt left of it is written over."""

    def write(self, shard: ShardPlace, stream: str, layer: int, row: int, rows: Rows) -> None:
        """
        Write a block.

        Args:
            shard: The one that was begun.
            stream: `input` or `output`; of each block the input comes first.
            layer: Layers come in their order.
            row: Of the block's first token, in the shard.
            rows: Float32 [tokens, d_model].
        """

    def end(self, shard: ShardPlace) -> None:
        """Have the shard on the disk as a whole."""


def _safetensors(folder: Path, extent: Extent) -> Writer:
    from weft_client.exporting.safetensors_files import SafetensorsFiles

    return SafetensorsFiles(folder, extent)


def _parquet(folder: Path, extent: Extent) -> Writer:
    from weft_client.exporting.parquet_files import ParquetFiles

    return ParquetFiles(folder, extent)


def _zarr(folder: Path, extent: Extent) -> Writer:
    from weft_client.exporting.zarr_arrays import ZarrArrays

    return ZarrArrays(folder, extent)


FORMATS: dict[str, Callable[[Path, Extent], Any]] = {"safetensors": _safetensors, "parquet": _parquet, "zarr": _zarr}


def open_writer(name: str, folder: Path, extent: Extent) -> Writer:
    """
    A writer of a format, whose library is looked for only now.

    Raises:
        FailedPreconditionError: The library is not installed.
    """
    try:
        writer: Writer = FORMATS[name](folder, extent)
    except ModuleNotFoundError as error:
        raise FailedPreconditionError(
            f"{name} is written by the package {error.name}, which is not installed: pip install 'weft[{name}]', or "
            "choose safetensors, which needs none"
        ) from error
    return writer
