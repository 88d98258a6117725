"""
A bucket as a folder: one file an object, for one machine and any number of processes on it.

A put writes to `.weft/scratch`, flushes, takes the key's lock, checks its condition and renames: whoever dies, and
wherever, leaves the old object or the new one, and nothing that a listing shows. Locks are `flock` locks on 256 files
of `.weft/locks`, shared by hash, so that there is nothing to clean up.
"""

import fcntl
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from weft_common.errors import AlreadyExistsError, ConflictError, FailedPreconditionError, NotFoundError, WeftError
from weft_store.adapters.local_files import (
    flush_file,
    flush_folder,
    make_folders,
    scratch_file,
    storage_error,
    write_file_atomically,
)
from weft_store.port import ObjectInfo, check_condition, check_key, check_prefix, check_range

# Hidden from listings, and no key can reach it, because no part of a key starts with a dot.
_OWN = ".weft"
# A larger object's version is its size and time of writing, which grows with every overwrite; see `_etag`.
_HASHED_BYTES = 1 << 20
_SCRATCH_KEPT_S = 3600.0
_COPY_BYTES = 1 << 20


class FileObjectStore:
    """
    Objects as files below a folder, which is made where it is missing.

    Scratch files that a killed process left are removed an hour later, when the next process opens the bucket.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._scratch = self._root / _OWN / "scratch"
        self._locks = self._root / _OWN / "locks"
        with _storage_errors(f"bucket folder {str(self._root)!r}"):
            make_folders(self._scratch)
            make_folders(self._locks)
            self._remove_old_scratch()

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        check_range(offset, length)
        with self._open(key) as file:
            file.seek(offset)
            # A length is only a limit: what is allocated is what the file has.
            left = max(0, os.fstat(file.fileno()).st_size - offset)
            return file.read(left if length is None else min(length, left))

    def get_with_info(self, key: str) -> tuple[bytes, ObjectInfo]:
        with self._open(key) as file:
            data = file.read()
            return data, _describe(key, os.fstat(file.fileno()), data)

    def info(self, key: str) -> ObjectInfo:
        with self._open(key) as file:
            return _describe_file(key, file)

    def put(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> ObjectInfo:
        check_key(key)
        check_condition(if_absent=if_absent, if_match=if_match)
        with _storage_errors(f"object {key!r}"), scratch_file(self._scratch) as (scratch, file):
            # In one piece a large write takes ext4 ten times as long: 0.25 s of the processor for 85 MB, and not 0.03.
            pieces = memoryview(data)
            for start in range(0, len(pieces), _COPY_BYTES):
                file.write(pieces[start : start + _COPY_BYTES])
            return self._publish(key, scratch, file, if_absent=if_absent, if_match=if_match)

    def put_file(self, key: str, path: Path) -> ObjectInfo:
        check_key(key)
        with _storage_errors(f"object {key!r}"), scratch_file(self._scratch) as (scratch, file):
            with open(path, "rb") as source:
                shutil.copyfileobj(source, file, _COPY_BYTES)
            return self._publish(key, scratch, file, if_absent=False, if_match=None)

    def get_to_file(self, key: str, path: Path) -> ObjectInfo:
        with self._open(key) as source:
            info = _describe_file(key, source)
            source.seek(0)
            with write_file_atomically(path) as file:
                shutil.copyfileobj(source, file, _COPY_BYTES)
            return info

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        folder, _, start = prefix.rpartition("/")
        return self._walk(folder + "/" if folder else "", start)

    def list_folders(self, prefix: str) -> Iterator[str]:
        check_prefix(prefix, folder=True)
        for name, entry in self._entries(prefix):
            # A folder whose objects are all deleted stays on the disk; in a bucket there is no such thing.
            if entry.is_dir() and next(self._walk(prefix + name, ""), None) is not None:
                yield entry.name

    def delete(self, key: str) -> None:
        path = self._path(key)
        missing = suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError)
        with _storage_errors(f"object {key!r}"), self._lock(key), missing:
            path.unlink()
            flush_folder(path.parent)

    def presign_get(self, key: str, expires_s: int) -> str:
        check_key(key)
        return ""

    def presign_put(self, key: str, expires_s: int) -> str:
        check_key(key)
        return ""

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    @contextmanager
    def _open(self, key: str) -> Iterator[IO[bytes]]:
        path = self._path(key)
        with _storage_errors(f"object {key!r}"):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError):
                raise NotFoundError(f"there is no object {key!r} in the bucket.") from None
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                os.close(descriptor)
                raise NotFoundError(f"there is no object {key!r} in the bucket.")
            with os.fdopen(descriptor, "rb") as file:
                yield file

    @contextmanager
    def _lock(self, key: str) -> Iterator[None]:
        name = hashlib.sha256(key.encode()).hexdigest()[:2]
        with open(self._locks / name, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # given back when the file is closed, or its process dies
            yield

    def _publish(
        self, key: str, scratch: Path, file: IO[bytes], *, if_absent: bool, if_match: str | None
    ) -> ObjectInfo:
        """Give a complete scratch file its name, if the condition still holds."""
        flush_file(file)
        path = self._path(key)
        with self._lock(key):
            try:
                make_folders(path.parent)
                with open(path, "rb") as present:
                    found: ObjectInfo | None = _describe_file(key, present)
                    found_ns = os.fstat(present.fileno()).st_mtime_ns
            except FileNotFoundError:
                found, found_ns = None, 0
            except (FileExistsError, NotADirectoryError, IsADirectoryError):
                raise FailedPreconditionError(
                    f"object {key!r} cannot stand beside another one: one of the two keys is a folder of the other. "
                    "Choose another."
                ) from None
            if if_absent and found is not None:
                raise AlreadyExistsError(f"object {key!r} is already there.")
            if if_match is not None and (found is None or found.etag != if_match):
                raise ConflictError(f"object {key!r} has changed since it was read: read it again and retry.")
            now_ns = max(time.time_ns(), found_ns + 1)
            os.utime(scratch, ns=(now_ns, now_ns))
            with open(scratch, "rb") as complete:
                info = _describe_file(key, complete)
            os.replace(scratch, path)
            flush_folder(path.parent)
        return info

    def _entries(self, folder: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """Yield a folder's entries in the order of the keys below them: a folder sorts with its slash."""
        try:
            with os.scandir(self._root / folder) as entries:
                named = [(entry.name + "/" if entry.is_dir() else entry.name, entry) for entry in entries]
        except (FileNotFoundError, NotADirectoryError):
            return
        yield from sorted((item for item in named if not item[0].startswith(".")), key=lambda item: item[0])

    def _walk(self, folder: str, start: str) -> Iterator[ObjectInfo]:
        for name, entry in self._entries(folder):
            if not name.startswith(start):
                continue
            if name.endswith("/"):
                yield from self._walk(folder + name, "")
                continue
            with suppress(FileNotFoundError):  # deleted since
                status = entry.stat()
                yield ObjectInfo(folder + name, status.st_size, "", status.st_mtime_ns / 1e9)

    def _remove_old_scratch(self) -> None:
        oldest_s = time.time() - _SCRATCH_KEPT_S
        for path in self._scratch.iterdir():
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest_s:
                    path.unlink()


def _describe_file(key: str, file: IO[bytes]) -> ObjectInfo:
    status = os.fstat(file.fileno())
    return _describe(key, status, file.read() if status.st_size <= _HASHED_BYTES else b"")


def _describe(key: str, status: os.stat_result, data: bytes) -> ObjectInfo:
    return ObjectInfo(key, status.st_size, _etag(status, data), status.st_mtime_ns / 1e9)


def _etag(status: os.stat_result, data: bytes) -> str:
    """
    Name a version: the bytes' hash, or for a large object its size and time.

    The time is set by `_publish`, to the nanosecond and above the time of what it replaces.
    """
    if status.st_size <= _HASHED_BYTES:
        return hashlib.sha256(data).hexdigest()[:32]
    return f"{status.st_size:x}-{status.st_mtime_ns:x}"


@contextmanager
def _storage_errors(what: str) -> Iterator[None]:
    try:
        yield
    except WeftError:
        raise
    except OSError as error:
        raise storage_error(error, what) from error
