"""
Folders for files on their way between this machine and the bucket, which do not outlive a killed process for long.

    {temporary folder}/weft-scratch-*/lock       locked by the process that uses the folder, as long as it lives
    {temporary folder}/weft-scratch-*/files/     what it uses the folder for

A process that ends takes its folders with it. The system takes the lock of one that is killed, and the next process
that starts on this machine deletes what is no longer locked. A folder takes its name only once it is locked, and loses
its lock last, so nobody takes one for stale that is being made or deleted.
"""

import fcntl
import os
import shutil
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from weft_common.logging import get_logger

__all__ = ["ScratchFolder", "remove_stale"]

_PREFIX, _NEW_PREFIX, _LOCK, _FILES = "weft-scratch-", "weft-new-", "lock", "files"

_log = get_logger(__name__)


class ScratchFolder:
    """A folder below TMPDIR, there until `cleanup`, the end of its context, or the end of this process."""

    def __init__(self) -> None:
        made = Path(tempfile.mkdtemp(prefix=_NEW_PREFIX))
        lock = os.open(made / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = made.with_name(_PREFIX + made.name.removeprefix(_NEW_PREFIX))
        made.rename(folder)
        self._finalizer = weakref.finalize(self, _delete, folder, lock)
        self.path = folder / _FILES
        self.path.mkdir()

    def cleanup(self) -> None:
        """Delete the folder and all that is in it."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cleanup()


def remove_stale() -> int:
    """Delete the folders of this user whose processes were killed; return how many."""
    removed = 0
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if folder.lstat().st_uid == os.geteuid() and _remove_if_stale(folder):
                removed += 1
    if removed:
        _log.info("scratch_removed", folders=removed)
    return removed


def _remove_if_stale(folder: Path) -> bool:
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        # Refused with an OSError where the process that uses it lives, in whatever container of this machine.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return False
    _delete(folder, lock)
    return True


def _delete(folder: Path, lock: int) -> None:
    """Delete a folder that this process has locked, its lock last, and give the lock back."""
    shutil.rmtree(folder / _FILES, ignore_errors=True)
    with suppress(OSError):
        os.unlink(folder / _LOCK)
        folder.rmdir()
    os.close(lock)
