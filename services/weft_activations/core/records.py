"""
What comes out of a corpus's files, one record a line, row or text file, and what reading them may cost.

A compressed file says little about what comes out of it. So whoever reads one counts every piece against a budget, in
bytes and in time, before it keeps it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from weft_common.errors import CancelledError, FailedPreconditionError

__all__ = ["ReadBudget", "ReadLimits", "Record"]

# What a short file may become whatever the ratio: a few lines of text compress very well.
_FREE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Record:
    """
    A record of a file.

    Attributes:
        number: Line or row, from 1.
        text: The document; None where the record is broken.
        problem: Why it is broken.
    """

    number: int
    text: str | None
    problem: str = ""


@dataclass(frozen=True)
class ReadLimits:
    """
    What one import may cost.

    Attributes:
        record_bytes: Longest line and longest document, in bytes of UTF-8; a longer one is a broken record.
        read_bytes: Most bytes that come out of all files, decompressed.
        expansion: Most bytes that come out of a file for each of its own.
        seconds: Longest time.
    """

    record_bytes: int
    read_bytes: int
    expansion: float
    seconds: float


class ReadBudget:
    """
    Counts what comes out of files.

    Args:
        limits: What may come.
        stopped: Whether somebody called the work off.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        limits: ReadLimits,
        *,
        stopped: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits
        self._stopped = stopped
        self._clock = clock
        self._until_s = clock() + limits.seconds
        self._left = limits.read_bytes
        self._file = ""
        self._file_left = 0.0

    def begin_file(self, name: str, size_bytes: int) -> None:
        """Begin with a file of so many bytes."""
        self._file = name
        self._file_left = _FREE_BYTES + size_bytes * self.limits.expansion
        self.spend(0)

    def spend(self, num_bytes: int) -> None:
        """
        Count bytes that came, or are about to come, out of the file.

        Raises:
            FailedPreconditionError: They are too many, or the time is over; names the file and the setting.
            CancelledError: Somebody called the work off.
        """
        if self._stopped():
            raise CancelledError("the import was called off")
        self._left -= num_bytes
        self._file_left -= num_bytes
        if self._file_left < 0:
            raise FailedPreconditionError(
                f"{self._file} becomes more than {self.limits.expansion:g} times its size, which no text should; store "
                "it with less compression, or raise WEFT_ACTIVATIONS_MAX_CORPUS_EXPANSION"
            )
        if self._left < 0:
            raise FailedPreconditionError(
                f"more than {self.limits.read_bytes} bytes came out of the files by {self._file}; name fewer files, or "
                "raise WEFT_ACTIVATIONS_MAX_CORPUS_READ_BYTES"
            )
        if self._clock() > self._until_s:
            raise FailedPreconditionError(
                f"the files took longer than {self.limits.seconds:g} s by {self._file}; name fewer files, or raise "
                "WEFT_ACTIVATIONS_MAX_CORPUS_READ_S"
            )
