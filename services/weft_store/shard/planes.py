"""Bytes under zstd, read with bounds: what all codecs are made of."""

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


class FrameReader:
    """Reads the parts of one block one after the other; DataLossError wherever the block is not what it should be."""

    def __init__(self, payload: bytes | memoryview, key: str) -> None:
        self._payload = memoryview(payload)
        self._key = key
        self._at = 0
        self._zstd = zstandard.ZstdDecompressor()

    def take(self, count: int) -> memoryview:
        """Read bytes that are not compressed."""
        if count > len(self._payload) - self._at:
            raise self.fault("it ends too early")
        taken = self._payload[self._at : self._at + count]
        self._at += count
        return taken

    def byte(self) -> int:
        """Read one byte that is not compressed."""
        return self.take(1)[0]

    def plane(self, size: int) -> NDArray[np.uint8]:
        """Read a plane of exactly `size` bytes; nothing is allocated for one that says otherwise."""
        (length,) = _LENGTH.unpack(self.take(_LENGTH.size))
        return self._decompress(self.take(length), size)

    def frame(self, size: int) -> NDArray[np.uint8]:
        """Read a frame of exactly `size` bytes that goes to the end of the block."""
        return self._decompress(self.take(len(self._payload) - self._at), size)

    def end(self) -> None:
        """Check that nothing follows."""
        if self._at != len(self._payload):
            raise self.fault("bytes follow its last plane")

    def fault(self, why: str) -> DataLossError:
        """Say what is wrong with this block."""
        return DataLossError(
            f"a block of shard {self._key!r} is damaged: {why}. Restore the shard or harvest it again."
        )

    def _decompress(self, frame: memoryview, size: int) -> NDArray[np.uint8]:
        try:
            if zstandard.frame_content_size(frame) != size:
                raise self.fault("a frame has another size than its block")
            content = self._zstd.decompress(frame, max_output_size=size, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise self.fault(f"a frame cannot be decompressed ({error})") from error
        if len(content) != size:
            raise self.fault("a frame has another size than its block")
        return np.frombuffer(content, np.uint8)
