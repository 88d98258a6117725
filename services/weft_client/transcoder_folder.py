"""A transcoder's files on this machine: what of a folder is sent, and where what arrives is put."""

import re
from collections.abc import Iterator
from pathlib import Path

from weft_clt.formats.files import FolderFiles
from weft_common.errors import DataLossError, InvalidArgumentError

__all__ = ["files_of", "place_for"]

_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_PICKLED = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")


def files_of(folder: Path) -> Iterator[tuple[str, Path]]:
    """
    Name the files below a folder, joined by `/`, in order; links and hidden files are left out.

    Raises:
        InvalidArgumentError: There are none, or far too many, or one is a pickled checkpoint.
    """
    names = list(FolderFiles(folder).sizes())
    if not names:
        raise InvalidArgumentError(f"{folder} holds no files: give the folder of one transcoder.")
    for name in names:
        if Path(name).suffix in _PICKLED:
            raise InvalidArgumentError(
                f"{folder / name} is a pickled checkpoint, which weft never reads: save it as safetensors, or move it "
                "away."
            )
    yield from ((name, folder / name) for name in names)


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
