"""Bytes planes under zstd, read with bounds: what both codecs are made of."""

import struct

import numpy as np
import zstandard
from numpy.typing import NDArray

from weft_common.errors import DataLossError

# Level 1 is faster than 3 and, on planes without repetition, smaller: it looks less for matches that cost more than
# the literals they stand for.
_LEVEL = 1
_LENGTH = struct.Struct("<I")


def pack_plane(plane: NDArray[np.uint8]) -> bytes:
    """Compress one plane: its compressed length in four bytes, then one zstd frame that states its content's size."""
    frame = zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True, write_checksum=False).compress(
        np.ascontiguousarray(plane).data
    )
    return _LENGTH.pack(len(frame)) + frame


class PlaneReader:
    """Reads the planes of one block one after the other; DataLossError wherever the block is not what it should be."""

    def __init__(self, payload: bytes | memoryview, key: str) -> None:
        self._payload = memoryview(payload)
        self._key = key
        self._at = 0
        self._zstd = zstandard.ZstdDecompressor()

    def byte(self) -> int:
        """Read a byte that stands outside any plane."""
        return self._take(1)[0]

    def plane(self, size: int) -> NDArray[np.uint8]:
        """Read a plane of exactly `size` bytes; nothing is allocated for one that says otherwise."""
        (length,) = _LENGTH.unpack(self._take(_LENGTH.size))
        frame = self._take(length)
        try:
            if zstandard.frame_content_size(frame) != size:
                raise self.fault("a plane has another size than its block")
            content = self._zstd.decompress(frame, max_output_size=size, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise self.fault(f"a plane cannot be decompressed ({error})") from error
        if len(content) != size:
            raise self.fault("a plane has another size than its block")
        return np.frombuffer(content, np.uint8)

    def end(self) -> None:
        """Check that nothing follows."""
        if self._at != len(self._payload):
            raise self.fault("bytes follow its last plane")

    def fault(self, why: str) -> DataLossError:
        """Say what is wrong with this block."""
        return DataLossError(
            f"a block of shard {self._key!r} is damaged: {why}. Restore the shard or harvest it again."
        )

    def _take(self, count: int) -> memoryview:
        if count > len(self._payload) - self._at:
            raise self.fault("it ends too early")
        taken = self._payload[self._at : self._at + count]
        self._at += count
        return taken
