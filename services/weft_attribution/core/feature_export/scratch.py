"""A folder on the service's disk whose use is bounded, so that an export is refused before the disk is full."""

import shutil
from pathlib import Path

from weft_common.errors import StorageFullError

__all__ = ["Scratch"]


class Scratch:
    """
    Files of one export on the way.

    Args:
        folder: Where; it is there.
        max_bytes: Most that they take together.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes

    def room(self, name: str, num_bytes: int) -> Path:
        """
        The place of a file that takes so many bytes beside those that are there.

        Raises:
            StorageFullError: They come to more than the limit, or than the disk has left.
        """
        held = sum(path.stat().st_size for path in self._folder.iterdir())
        if held + num_bytes > self._max_bytes:
            raise StorageFullError(
                f"{name} needs {num_bytes} bytes of the temporary folder beside {held} that are held there, and an "
                f"export may take {self._max_bytes}; raise WEFT_ATTRIBUTION_EXPORT_SCRATCH_BYTES and what that folder "
                "may take (tmpSizeLimit on Kubernetes), then ask for the export again"
            )
        free = shutil.disk_usage(self._folder).free
        if num_bytes > free:
            raise StorageFullError(
                f"{name} needs {num_bytes} bytes of the temporary folder, which has {free} left; make room there, or "
                "set TMPDIR to a larger disk, then ask for the export again"
            )
        return self._folder / name
