"""A transcoder's files on this machine: what of a folder is sent, and where what arrives is put."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from weft_common.errors import DataLossError, InvalidArgumentError

__all__ = ["files_of", "place_for"]

_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_PICKLED = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")
_MOST_FILES = 20_000


def files_of(folder: Path) -> Iterator[tuple[str, Path]]:
    """
    Name the files below a folder, joined by `/`, in order; links and hidden files are left out.

    Raises:
        InvalidArgumentError: There are none, or far too many, or one is a pickled checkpoint.
    """
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = (Path(root) / name for name in sorted(names) if not name.startswith("."))
        found += [path for path in paths if path.is_file() and not path.is_symlink()]
    if not 1 <= len(found) <= _MOST_FILES:
        raise InvalidArgumentError(
            f"{folder} holds {len(found)} files: give the folder of one transcoder, with 1 to {_MOST_FILES}."
        )
    for path in found:
        if path.suffix in _PICKLED:
            raise InvalidArgumentError(
                f"{path} is a pickled checkpoint, which weft never reads: save it as safetensors, or move it away."
            )
    yield from ((path.relative_to(folder).as_posix(), path) for path in found)


def place_for(folder: Path, name: str) -> Path:
    """
    Return where a file goes, its folder made.

    Raises:
        DataLossError: Its name leads out of the folder.
    """
    parts = name.split("/")
    if len(parts) > 8 or not all(_PART.fullmatch(part) for part in parts):
        raise DataLossError(f"the service names a file {name[:80]!r}, which is no path below a folder")
    place = folder.joinpath(*parts)
    place.parent.mkdir(parents=True, exist_ok=True)
    return place
