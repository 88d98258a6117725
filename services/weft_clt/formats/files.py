"""Where a layout's files are read from: a folder, or whatever else lists names and reads ranges of bytes."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from weft_common.errors import DataLossError, InvalidArgumentError, NotFoundError

__all__ = ["MAX_FILES", "FolderFiles", "LayoutFiles", "read_text"]

MAX_FILES = 20_000
MAX_TEXT_BYTES = 64 << 10


class LayoutFiles(Protocol):
    """Files below one place, by their names relative to it, joined by '/'."""

    @property
    def where(self) -> str:
        """The place as a person knows it, with what joins it to a name."""
        ...

    def sizes(self) -> Mapping[str, int]:
        """Name every file, with its size in bytes. InvalidArgumentError where there are more than MAX_FILES."""
        ...

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Read exactly so many bytes; NotFoundError, DataLossError where the file ends before."""
        ...


class FolderFiles:
    """
    Files of a folder; links are not followed, hidden files are left out.

    Args:
        folder: Where.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sizes: dict[str, int] | None = None

    @property
    def where(self) -> str:
        """The folder."""
        return f"{self._folder}/"

    def sizes(self) -> Mapping[str, int]:
        """List the folder, once."""
        if self._sizes is None:
            found: dict[str, int] = {}
            for root, folders, names in os.walk(self._folder):
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                for name in sorted(names):
                    path = Path(root) / name
                    if name.startswith(".") or path.is_symlink() or not path.is_file():
                        continue
                    found[path.relative_to(self._folder).as_posix()] = path.stat().st_size
                    if len(found) > MAX_FILES:
                        raise InvalidArgumentError(
                            f"{self._folder} holds more than {MAX_FILES} files: give the folder of one transcoder."
                        )
            self._sizes = found
        return self._sizes

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Read a range of a file that `sizes` names."""
        if name not in self.sizes():
            raise NotFoundError(f"there is no {self.where}{name}.")
        with (self._folder / name).open("rb") as file:
            file.seek(offset)
            data = file.read(length)
        if len(data) != length:
            raise DataLossError(f"{self.where}{name} ends at byte {offset + len(data)}: copy it again.")
        return data


def read_text(files: LayoutFiles, name: str) -> str:
    """Read a small file of text. NotFoundError, DataLossError."""
    size = files.sizes().get(name)
    if size is None:
        raise NotFoundError(f"there is no '{files.where}{name}'.", field="prefix")
    if size > MAX_TEXT_BYTES:
        raise DataLossError(
            f"'{files.where}{name}' has {size} bytes, more than {MAX_TEXT_BYTES}: it is no configuration."
        )
    try:
        return files.read(name, 0, size).decode()
    except UnicodeDecodeError as error:
        raise DataLossError(f"'{files.where}{name}' is no text ({error}): copy it again.") from error
