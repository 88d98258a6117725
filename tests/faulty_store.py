"""A bucket that fails when it is told to, behind the same Protocol as the real ones."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from weft_store import ObjectStore
from weft_store.port import ObjectInfo

T = TypeVar("T")

# Called with "before" or "after", the operation, the key and the number of writes so far, this one included.
Fault = Callable[[str, str, str, int], None]


def kill_after(write: int) -> Fault:
    """End this process by SIGKILL after its n-th write."""

    def fault(moment: str, op: str, key: str, count: int) -> None:
        if (moment, count) == ("after", write):
            os.kill(os.getpid(), signal.SIGKILL)

    return fault


class FaultyObjectStore:
    """
    Passes every call on; around each write it asks the fault what happens.

    Args:
        store: The bucket.
        fault: May raise, or never return.
    """

    def __init__(self, store: ObjectStore, fault: Fault) -> None:
        self._store, self._fault, self.writes = store, fault, 0

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        return self._store.get(key, offset=offset, length=length)

    def get_with_info(self, key: str) -> tuple[bytes, ObjectInfo]:
        return self._store.get_with_info(key)

    def info(self, key: str) -> ObjectInfo:
        return self._store.info(key)

    def put(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> ObjectInfo:
        return self._write("put", key, lambda: self._store.put(key, data, if_absent=if_absent, if_match=if_match))

    def put_file(self, key: str, path: Path) -> ObjectInfo:
        return self._write("put_file", key, lambda: self._store.put_file(key, path))

    def get_to_file(self, key: str, path: Path) -> ObjectInfo:
        return self._store.get_to_file(key, path)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return self._store.list(prefix)

    def list_folders(self, prefix: str) -> Iterator[str]:
        return self._store.list_folders(prefix)

    def delete(self, key: str) -> None:
        def work() -> None:
            self._store.delete(key)

        self._write("delete", key, work)

    def presign_get(self, key: str, expires_s: int) -> str:
        return self._store.presign_get(key, expires_s)

    def presign_put(self, key: str, expires_s: int) -> str:
        return self._store.presign_put(key, expires_s)

    def _write(self, op: str, key: str, work: Callable[[], T]) -> T:
        self.writes += 1
        self._fault("before", op, key, self.writes)
        done = work()
        self._fault("after", op, key, self.writes)
        return done
