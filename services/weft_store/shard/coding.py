"""
Blocks of codes under an entropy coder with a model for each group of channels.

Shapes: T tokens of a block, D d_model, G groups.
"""

import struct
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft_common.errors import DataLossError

_HEAD = struct.Struct("<HxxIII8I")
_FIRST_STATE = 1 << 16
_PADDING = 16
# As in `loops`, which is not imported for them.
_SCALE, _DIRECT = 4096, 224
# A model takes some 40 bytes and a table of 4,096 entries: groups of fewer values do not pay for theirs.
_LEAST_VALUES, _MOST_VALUES = 2048, 16384
_SPREAD = 1.6


@cache
def _compiled() -> tuple[ModuleType, ModuleType]:
    """Numba takes half a second to come, and whoever writes or reads no codes need not have it."""
    from weft_store.shard import loops, models

    return loops, models


@dataclass(frozen=True, slots=True)
class CodedBlock:
    """
    A block whose models were read, and nothing else.

    Attributes:
        bounds: int64 [G + 1], the places at which groups begin; the last is D.
        frequencies: uint16 [G, 256].
        states: uint32 [8].
        words: uint16 [W + 16], of which the last 16 are zero.
        bits: uint8, the bits beside classes.
        largest: The largest symbol of all models.
        key: The shard's, for errors.
    """

    bounds: NDArray[np.int64]
    frequencies: NDArray[np.uint16]
    states: NDArray[np.uint32]
    words: NDArray[np.uint16]
    bits: NDArray[np.uint8]
    largest: int
    key: str

    @property
    def dtype(self) -> np.dtype[np.signedinteger[Any]]:
        """The narrowest of int8, int16 and int32 that every code of such models fits."""
        # Symbol 224 + k is a zigzag number of at most 223 + 2**(k + 1) - 1; 254 and 65,534 are the last that fit.
        width = self.largest - _DIRECT
        return np.dtype(np.int8 if width <= 4 else np.int16 if width <= 14 else np.int32)

    def decode(self, order_D: NDArray[np.int64], out_TD: NDArray[np.signedinteger[Any]]) -> None:
        """
        Write the codes into `out_TD`, of `dtype` or a wider one, channels in their own order.

        Raises:
            DataLossError: These are not bytes that an encoder wrote.
        """
        loops, states = _compiled()[0], self.states.copy()
        table = np.empty(_SCALE, np.uint32)
        num_words = self.words.size - _PADDING
        used = loops.decode(self.words, states, self.frequencies, table, self.bounds, order_D, out_TD)
        if used != num_words or (states != _FIRST_STATE).any():
            raise fault(self.key, "its entropy code does not end where it should")
        at, num_bits = 0, 8 * self.bits.size
        if self.largest >= _DIRECT:
            for group in np.flatnonzero(self.frequencies[:, _DIRECT:].any(axis=1)):
                first, last = self.bounds[group], self.bounds[group + 1]
                at = loops.expand(self.bits, num_bits, at, first, last, order_D, out_TD)
                if at > num_bits:
                    break
        if (at + 7) // 8 != self.bits.size:
            raise fault(self.key, "its large codes do not end where they should")


def read_block(payload: bytes | memoryview, d_model: int, key: str) -> CodedBlock:
    """Read the models of a block and check its sizes. DataLossError."""
    data = np.frombuffer(payload, np.uint8)
    if data.size < _HEAD.size:
        raise fault(key, "it ends too early")
    num_groups, models_bytes, num_words, bits_bytes, *states = _HEAD.unpack_from(payload)
    if data.size != _HEAD.size + models_bytes + 2 * num_words + bits_bytes or data[2] or data[3]:
        raise fault(key, "its sizes contradict each other")
    if not 1 <= num_groups <= d_model or models_bytes < 4 * num_groups:
        raise fault(key, "it has more groups of channels than channels, or none")
    end = _HEAD.size + models_bytes
    bounds, frequencies = np.zeros(num_groups + 1, np.int64), np.zeros((num_groups, 256), np.uint16)
    largest = _compiled()[1].read_models(data[:end], _HEAD.size, bounds, frequencies)
    if largest < 0 or bounds[-1] != d_model:
        raise fault(key, "its models are damaged")
    words = np.zeros(num_words + _PADDING, np.uint16)
    words.view(np.uint8)[: 2 * num_words] = data[end : end + 2 * num_words]
    bits = data[end + 2 * num_words :]
    return CodedBlock(bounds, frequencies, np.array(states, np.uint32), words, bits, largest, key)


def group_bounds(squared_deviation_D: NDArray[np.float64], num_tokens: int) -> NDArray[np.int64]:
    """
    Cut channels, in the order of their spread, into groups of about one spread.

    Args:
        squared_deviation_D: In that order, growing.
        num_tokens: Of a block.
    """
    least = max(8, -(-_LEAST_VALUES // max(1, num_tokens)) + 7 & ~7)
    most = max(least, _MOST_VALUES // max(1, num_tokens) & ~7)
    spread = np.sqrt(squared_deviation_D)
    bounds, num_channels = [0], len(spread)
    while bounds[-1] < num_channels:
        first = bounds[-1]
        alike = int(np.searchsorted(spread, spread[first] * _SPREAD, side="right")) - first
        size = min(most, max(least, alike & ~7))
        bounds.append(min(num_channels, first + size) if num_channels - first - size >= least else num_channels)
    return np.array(bounds, np.int64)


def encode_block(codes_TD: NDArray[np.int32], order_D: NDArray[np.int64], bounds: NDArray[np.int64]) -> bytes:
    """
    Write a block.

    Args:
        codes_TD: With T of at least 1.
        order_D: The channel of each place.
        bounds: [G + 1], the places at which groups begin; the last is D.
    """
    loops, models = _compiled()
    num_groups = len(bounds) - 1
    symbols, counts = np.empty(codes_TD.size, np.uint8), np.zeros((num_groups, 256), np.int64)
    beside = np.zeros(_class_bytes(codes_TD), np.uint8)
    num_bits = loops.count_symbols(codes_TD, bounds, order_D, symbols, counts, beside)
    frequencies = np.empty_like(counts)
    for group in range(num_groups):
        models.scale_counts(counts[group], frequencies[group])
    starts = np.cumsum(frequencies, axis=1) - frequencies
    words, states = np.empty(codes_TD.size, np.uint16), np.full(8, _FIRST_STATE, np.uint32)
    first = loops.encode(
        symbols, len(codes_TD), bounds, starts.astype(np.uint32), frequencies.astype(np.uint32), words, states
    )
    data = np.empty(520 * num_groups, np.uint8)
    written = data[: models.write_models(bounds, frequencies, data)].tobytes()
    bits = beside[: (num_bits + 7) // 8].tobytes()
    used = words[first:].astype("<u2").tobytes()
    head = _HEAD.pack(num_groups, len(written), words.size - first, len(bits), *(int(state) for state in states))
    return b"".join((head, written, used, bits))


def fault(key: str, why: str) -> DataLossError:
    """Say what is wrong with a block."""
    return DataLossError(f"a block of shard {key!r} is damaged: {why}. Restore the shard or harvest it again.")


def _class_bytes(codes_TD: NDArray[np.int32]) -> int:
    """Give more than enough bytes for the bits beside classes: 32 for each code that needs any."""
    beyond = int(np.count_nonzero((codes_TD > 111) | (codes_TD < -112)))
    return 4 * beyond + 1
