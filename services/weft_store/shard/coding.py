"""
Codes of a block as bytes: symbols of one to five codes, each group of channels with an entropy code of its own.

zstd's entropy code gives every symbol a whole number of bits. Where most codes are 0 that is too many, so several codes
make one symbol there. A group is a block of its own inside the zstd frame, and so has its own table; one frame for all
of them is read in one call. Rare large codes are escapes: they stand behind the symbols.
Shapes: T tokens of a block, D d_model, E escapes.
"""

import struct
from functools import cache, lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import zstandard
from numpy.typing import NDArray

from weft_store.shard.planes import FrameReader

__all__ = ["CodedBlock", "encode_block", "round_codes"]

_HEAD = struct.Struct("<IB")
# At most this share of a group's codes are escapes where several codes make a symbol: each takes about twelve bits.
_FEW = 256


class _Alphabet(NamedTuple):
    """
    How codes of a group become symbols.

    Attributes:
        values: Codes of a symbol.
        base: Digits that there are.
        direct: Codes in zigzag below this are digits; the digit `direct`, where the base has it, is an escape.
    """

    values: int
    base: int
    direct: int

    @property
    def escape(self) -> int:
        """The digit of an escape, above any where there is none."""
        return self.direct if self.direct < self.base else 256


_ALPHABETS = {
    values: _Alphabet(values, base, direct)
    for values, base, direct in ((0, 1, 1), (1, 256, 255), (2, 16, 15), (3, 6, 5), (5, 3, 3))
}
_TRIED = np.array([_ALPHABETS[values] for values in (5, 3, 2, 1)], np.uint32)


@cache
def _loops() -> ModuleType:
    """Numba takes half a second to come, and whoever reads no codes need not have it."""
    from weft_store.shard import packing

    return packing


def encode_block(codes_TD: NDArray[np.int32], order_D: NDArray[np.uint64], group_channels: int) -> bytes:
    """Write a block: for each group how many codes make a symbol, the number of escapes, and one frame of all."""
    num_tokens, d_model = codes_TD.shape
    kinds = np.zeros(-(-d_model // group_channels), np.uint8)
    symbols, escapes = np.empty(codes_TD.size, np.uint8), np.empty(codes_TD.size, np.uint32)
    scratch = np.empty(codes_TD.size, np.uint8)
    _, kept = _loops().pack(codes_TD, order_D, group_channels, _TRIED, _FEW, kinds, symbols, escapes, scratch)
    escapes = escapes[: int(kept)]
    width = (int(escapes.max()).bit_length() + 7) // 8 if escapes.size else 0
    parts, start = [], 0
    for first, values in zip(range(0, d_model, group_channels), kinds.tolist(), strict=True):
        if values:
            stop = start - (-num_tokens * min(group_channels, d_model - first) // values)
            parts.append(symbols[start:stop])
            start = stop
    parts.extend((escapes >> (8 * plane)).astype(np.uint8) for plane in range(width))
    return kinds.tobytes() + _HEAD.pack(escapes.size, width) + _compress(parts)


@lru_cache(maxsize=256)
def _arrangement(
    kinds: bytes, num_tokens: int, d_model: int, group_channels: int
) -> tuple[NDArray[np.int64], int, int]:
    """Give what `unpack` wants to know of groups of these kinds, their symbols together, and its scratch's size."""
    groups, num_symbols = [], 0
    for first, kind in zip(range(0, d_model, group_channels), kinds, strict=True):
        width, alphabet = min(group_channels, d_model - first), _ALPHABETS[kind]
        groups.append((first, width, kind, alphabet.base**kind - 1, alphabet.escape))
        num_symbols += -(-num_tokens * width // kind) if kind else 0
    room = len(kinds) * num_tokens * min(group_channels, d_model) + max(_ALPHABETS)
    return np.array(groups, np.int64), num_symbols, room


class CodedBlock:
    """
    A block that is checked but not decoded.

    Args:
        payload: Its bytes.
        num_tokens: T.
        d_model: D.
        group_channels: Places of a group.
        key: The shard's, for errors.

    Raises:
        DataLossError: It is damaged.
    """

    def __init__(self, payload: bytes | memoryview, num_tokens: int, d_model: int, group_channels: int, key: str):
        self._reader = FrameReader(payload, key)
        kinds = bytes(self._reader.take(-(-d_model // group_channels)))
        if not set(kinds) <= _ALPHABETS.keys():
            raise self._reader.fault(f"a group of channels has {max(kinds)} codes in a symbol")
        self._num_escapes, self._width = _HEAD.unpack(self._reader.take(_HEAD.size))
        if (
            self._width > 4
            or self._num_escapes > num_tokens * d_model
            or (self._width == 0) != (self._num_escapes == 0)
        ):
            raise self._reader.fault(f"it has {self._num_escapes} escapes of {self._width} bytes")
        self._groups, self._num_symbols, self._scratch = _arrangement(kinds, num_tokens, d_model, group_channels)

    @property
    def dtype(self) -> np.dtype[np.signedinteger[Any]]:
        """The narrowest integer that its codes are sure to fit."""
        return np.dtype((np.int8, np.int8, np.int16, np.int32, np.int32)[self._width])

    def decode(self, order_D: NDArray[np.uint64], out_TD: NDArray[np.signedinteger[Any]]) -> None:
        """
        Write the codes, in the order of channels.

        Raises:
            DataLossError: The block is damaged.
        """
        content = self._reader.frame(self._num_symbols + self._num_escapes * self._width)
        planes = content[self._num_symbols :].reshape(self._width, self._num_escapes)
        scratch = np.empty(self._scratch, np.uint8)
        found = _loops().unpack(content, self._groups, order_D, planes, scratch, out_TD)
        if found:
            raise self._reader.fault(
                "a symbol is none of its alphabet" if found == 1 else "its escapes are not those of its symbols"
            )


def round_codes(
    codes_TD: NDArray[np.signedinteger[Any]],
    step: np.float32,
    mean_D: NDArray[np.float32],
    bits_TD: NDArray[np.uint16],
) -> None:
    """Write the bits of the bfloat16 nearest to each code times the step plus the mean."""
    _loops().round_rows(codes_TD, step, mean_D, bits_TD)


def _compress(parts: list[NDArray[np.uint8]]) -> bytes:
    """Make one frame, each part a block of its own in it."""
    # Codes do not repeat: the smallest table of matches finds the runs that there are and loses no time over others.
    settings = zstandard.ZstdCompressionParameters.from_level(
        1, window_log=17, hash_log=6, min_match=7, write_content_size=True, write_checksum=False
    )
    stream = zstandard.ZstdCompressor(compression_params=settings).compressobj(size=sum(map(len, parts)))
    written = []
    for part in parts:
        written += [stream.compress(part.data), stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)]
    return b"".join([*written, stream.flush()])
