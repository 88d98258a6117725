"""What the catalog needs of the outside besides the bucket itself."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import numpy as np
import numpy.typing as npt

Clock = Callable[[], datetime]
"""Tells the time, in UTC."""


@dataclass(frozen=True, slots=True)
class ShardHeader:
    """What a shard says of itself."""

    num_layers: int
    d_model: int
    num_tokens: int
    row_group_tokens: int
    codec: str


class Shards(Protocol):
    """Looks into shards; every method may be called from any thread."""

    def verify(self, key: str, sha256: str, size_bytes: int) -> None:
        """
        Read every byte and compare size and SHA-256.

        Raises:
            DataLossError: the object is missing or is not what is expected; says which and what lies there.
        """

    def header(self, key: str) -> ShardHeader:
        """
        Read the header.

        Raises:
            DataLossError: it is no shard.
        """

    def read(self, key: str, stream: str, layer: int, row_group: int) -> npt.NDArray[np.float32]:
        """
        Decode one block to [tokens, d_model].

        Raises:
            DataLossError: a checksum fails.
        """


class Counters(Protocol):
    """What the catalog counts."""

    def moved(self, direction: str, stage: str, size_bytes: int) -> None:
        """Bytes that were read from or handed out of the bucket at a stage."""

    def corrupt(self) -> None:
        """An object was not what its record says."""

    def committed(self, size_bytes: int, num_values: int) -> None:
        """A shard of so many values took so many bytes."""
