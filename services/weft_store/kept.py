"""
Ranges of immutable objects, kept in a folder of this machine up to a size.

What was used longest ago goes first. A file begins with the SHA-256 of what it holds, so that a disk that forgets is
asked once and the bucket then.
"""

import hashlib
import os
import threading
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

from weft_common.logging import get_logger
from weft_store.port import RangedReads

__all__ = ["KeptReads"]

_DIGEST_BYTES = 32
_Range = tuple[str, int, int]

_log = get_logger(__name__)


class KeptReads:
    """
    Reads ranges out of a folder where they were read before.

    Args:
        store: The bucket; only objects that never change may be read through here.
        folder: Empty, and nobody else's.
        most_bytes: Of all files in it together; a range that is larger is not kept.
    """

    def __init__(self, store: RangedReads, folder: Path, most_bytes: int) -> None:
        self._store, self._folder, self._most_bytes = store, folder, most_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[_Range, tuple[Path, int]] = OrderedDict()
        self._size_bytes = 0
        self._next_file = 0
        self._broken = False

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return self._size_bytes

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Read a range; what has no end is not kept. Raises what the store raises, and nothing because of the disk."""
        if length is None:
            return self._store.get(key, offset=offset)
        place = (key, offset, length)
        found = self._find(place)
        if found is not None:
            return found
        data = self._store.get(key, offset=offset, length=length)
        self._keep(place, data)
        return data

    def _find(self, place: _Range) -> bytes | None:
        with self._lock:
            if place not in self._kept:
                return None
            self._kept.move_to_end(place)
            path = self._kept[place][0]
        with suppress(OSError):  # evicted meanwhile, or unreadable
            content = path.read_bytes()
            data = content[_DIGEST_BYTES:]
            if hashlib.sha256(data).digest() == content[:_DIGEST_BYTES]:
                return data
            _log.warning("kept_range_damaged", key=place[0], offset=place[1])
        with self._lock:
            if place in self._kept and self._kept[place][0] == path:
                self._forget(place)
        return None

    def _keep(self, place: _Range, data: bytes) -> None:
        needed = _DIGEST_BYTES + len(data)
        with self._lock:
            if self._broken or needed > self._most_bytes or place in self._kept:
                return
            while self._size_bytes + needed > self._most_bytes:
                self._forget(next(iter(self._kept)))
            path = self._folder / str(self._next_file)
            self._next_file += 1
            # Counted before it is written, so that threads together never write more than fits.
            self._kept[place] = (path, needed)
            self._size_bytes += needed
        try:
            scratch = path.with_suffix(".tmp")
            scratch.write_bytes(hashlib.sha256(data).digest() + data)
            with self._lock:
                if self._kept.get(place, (None,))[0] == path:
                    os.replace(scratch, path)
                else:  # evicted while it was written
                    scratch.unlink()
        except OSError as error:
            _log.warning("ranges_not_kept", reason=str(error))
            with self._lock:
                self._broken = True
                with suppress(OSError):
                    scratch.unlink()
                if place in self._kept:
                    self._forget(place)

    def _forget(self, place: _Range) -> None:
        path, size = self._kept.pop(place)
        self._size_bytes -= size
        with suppress(OSError):  # being written, or gone
            path.unlink()
