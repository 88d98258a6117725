"""A bucket in this process's memory, for tests and for short-lived embedded runs."""

import hashlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from weft_common.errors import AlreadyExistsError, ConflictError, FailedPreconditionError, NotFoundError
from weft_store.adapters.local_files import write_file_atomically
from weft_store.port import ObjectInfo, check_condition, check_key, check_prefix, check_range


class MemoryObjectStore:
    """Objects in a dictionary under one lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._objects: dict[str, tuple[bytes, ObjectInfo]] = {}

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        check_range(offset, length)
        data, _ = self.get_with_info(key)
        return data[offset:] if length is None else data[offset : offset + length]

    def get_with_info(self, key: str) -> tuple[bytes, ObjectInfo]:
        check_key(key)
        with self._lock:
            found = self._objects.get(key)
        if found is None:
            raise NotFoundError(f"there is no object {key!r} in the bucket.")
        return found

    def info(self, key: str) -> ObjectInfo:
        return self.get_with_info(key)[1]

    def put(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> ObjectInfo:
        check_key(key)
        check_condition(if_absent=if_absent, if_match=if_match)
        kept = bytes(data)
        info = ObjectInfo(key, len(kept), hashlib.sha256(kept).hexdigest()[:32], time.time())
        with self._lock:
            found = self._objects.get(key)
            if if_absent and found is not None:
                raise AlreadyExistsError(f"object {key!r} is already there.")
            if if_match is not None and (found is None or found[1].etag != if_match):
                raise ConflictError(f"object {key!r} has changed since it was read: read it again and retry.")
            if found is None:
                self._refuse_nesting(key)
            self._objects[key] = (kept, info)
        return info

    def put_file(self, key: str, path: Path) -> ObjectInfo:
        return self.put(key, path.read_bytes())

    def get_to_file(self, key: str, path: Path) -> ObjectInfo:
        data, info = self.get_with_info(key)
        with write_file_atomically(path) as file:
            file.write(data)
        return info

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        with self._lock:
            found = sorted(item for item in self._objects.items() if item[0].startswith(prefix))
        for key, (data, info) in found:
            yield ObjectInfo(key, len(data), "", info.modified_s)

    def list_folders(self, prefix: str) -> Iterator[str]:
        check_prefix(prefix, folder=True)
        with self._lock:
            below = [key[len(prefix) :] for key in self._objects if key.startswith(prefix)]
        yield from sorted({key.split("/", 1)[0] for key in below if "/" in key})

    def delete(self, key: str) -> None:
        check_key(key)
        with self._lock:
            self._objects.pop(key, None)

    def presign_get(self, key: str, expires_s: int) -> str:
        check_key(key)
        return ""

    def presign_put(self, key: str, expires_s: int) -> str:
        check_key(key)
        return ""

    def _refuse_nesting(self, key: str) -> None:
        parts = key.split("/")
        above = ["/".join(parts[:count]) for count in range(1, len(parts))]
        taken = next((name for name in above if name in self._objects), None)
        taken = taken or next((name for name in self._objects if name.startswith(key + "/")), None)
        if taken is not None:
            raise FailedPreconditionError(
                f"object {key!r} cannot stand beside {taken!r}: one of the two keys is a folder of the other. "
                "Choose another."
            )
