"""A dataset whose tokens carry their number, as codes."""

import threading
from dataclasses import dataclass, field

import numpy as np

from weft_clt.data import CodedRowGroup, CodedStream, RowGroup
from weft_clt.normalization import Moments, Normalization

SIZES = [8, 5, 0, 8, 3, 8]
NUM_LAYERS, D_MODEL = 2, 4


@dataclass
class NumberedTokens:
    """Row r of the row group at position g is 100 g + r in every place of its input, and minus that in its output."""

    sizes: list[int]
    reads: list[tuple[int, int]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def at(self, epoch: int, position: int) -> RowGroup | None:
        if position >= len(self.sizes):
            return None
        return RowGroup(epoch, position, self.sizes[position], seed=50 * epoch + position, where=position)

    def read(self, row_group: RowGroup) -> CodedRowGroup:
        with self.lock:
            self.reads.append(row_group.key)
        numbers = 100 * row_group.position + np.arange(row_group.num_tokens, dtype=np.int16)
        codes_LTD = np.broadcast_to(numbers[None, :, None], (NUM_LAYERS, numbers.size, D_MODEL)).copy()
        step_L, mean_LD = np.ones(NUM_LAYERS, np.float32), np.zeros((NUM_LAYERS, D_MODEL), np.float32)
        return CodedRowGroup(CodedStream(codes_LTD, step_L, mean_LD), CodedStream(-codes_LTD, step_L, mean_LD))

    def describe(self, row_group: RowGroup) -> str:
        return f"row group {row_group.position}"

    @property
    def numbers(self) -> list[int]:
        """The tokens of an epoch."""
        return [100 * position + row for position, size in enumerate(self.sizes) for row in range(size)]


def normalization() -> Normalization:
    """Layer 0 keeps its units, layer 1 is doubled."""
    moments = [Moments(2.0, np.zeros(D_MODEL)), Moments(1.0, np.zeros(D_MODEL))]
    return Normalization.from_moments(moments, moments)
