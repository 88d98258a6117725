"""
Writing local files so that a crash at any instruction leaves the old file or the new one.

A file is written beside where it will stand (or in a scratch folder of the same file system), flushed to the disk, and
renamed; then its folder is flushed, so that the name survives a power failure as well.
"""

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from weft_common.errors import PermissionDeniedError, StorageFullError, UnavailableError, WeftError


def storage_error(error: OSError, what: str) -> WeftError:
    """Turn the operating system's refusal into ours: no space, no permission, or a disk that fails."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StorageFullError(f"no space is left for {what}: free some, or give the bucket another place.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PermissionDeniedError(f"{what} may not be read or written ({error.strerror}): check the folder's owner.")
    return UnavailableError(f"{what} could not be read or written: {error.strerror or error}.")


def flush_folder(folder: Path) -> None:
    """Make the names in a folder survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folders(folder: Path) -> None:
    """Create a folder and its parents, and flush the names of those that were missing."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for new in reversed(missing):
        new.mkdir(exist_ok=True)
        flush_folder(new.parent)


@contextmanager
def scratch_file(folder: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """Open a new file to be renamed away by the caller; flushed by `flush_file`, removed where it is still there."""
    path = folder / f"{os.getpid()}-{uuid.uuid4().hex}.tmp"
    try:
        with open(path, "xb") as file:
            yield path, file
    finally:
        with suppress(FileNotFoundError):
            path.unlink()


def flush_file(file: IO[bytes]) -> None:
    """Bring what was written to the disk."""
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def write_file_atomically(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes its name only once it is complete. StorageFullError and its kind."""
    try:
        with scratch_file(path.parent) as (scratch, file):
            yield file
            flush_file(file)
            os.replace(scratch, path)
        flush_folder(path.parent)
    except OSError as error:
        raise storage_error(error, f"file {str(path)!r}") from error
