"""What the catalog needs of the outside besides the bucket itself."""

from collections.abc import Callable
from datetime import datetime
from typing import Protocol

import numpy as np
import numpy.typing as npt

from weft_store.shard import ShardHeader, Stream

Clock = Callable[[], datetime]
"""Tells the time, in UTC."""


class Shards(Protocol):
    """Looks into shards; every method may be called from any thread."""

    def verify(self, key: str, sha256: str, size_bytes: int) -> ShardHeader:
        """
        Read every byte, compare size and SHA-256, and give the header.

        Raises:
            DataLossError: the object is missing, is no shard or is not the expected one; says what lies there.
        """

    def read(self, key: str, stream: Stream, layer: int, row_group: int) -> npt.NDArray[np.float32]:
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


class Holders(Protocol):
    """Knows those who hold datasets; called from any thread."""

    def ended(self, holder: str) -> bool:
        """
        Whether a run or an operation has come to its end, or never was; True is for good, unless it holds anew.

        Raises:
            DataLossError: what is known of it cannot be read; the holder counts as one that goes on.
        """
