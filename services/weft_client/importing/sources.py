"""Files of a folder as pieces of activations, whatever their layout."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from weft_client.importing.clt_forge_cache import CompressedCache
from weft_clt.formats.safetensors_reading import SafetensorsFile, table
from weft_common.errors import DataLossError, InvalidArgumentError, NotFoundError

__all__ = ["Part", "digest_of", "files_of", "open_part"]

Rows = npt.NDArray[np.float32]
_MAX_FILES = 100_000
_READ_BYTES = 8 << 20
_LAYER = re.compile(r"(input|output)\.(\d{1,4})")


class Part(Protocol):
    """
    One file.

    Attributes:
        shape: Layers, tokens, d_model.
    """

    shape: tuple[int, int, int]

    def read(self, start: int, stop: int) -> tuple[Rows, Rows]:
        """Inputs and outputs of some tokens, each float32 [layers, tokens, d_model]. DataLossError: not finite."""
        ...

    def close(self) -> None:
        """Let go of what was opened for it."""
        ...


class _OneFile:
    """A file by itself, as the reader of safetensors wants files."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.where = f"{path.parent}/"

    def sizes(self) -> Mapping[str, int]:
        return {self._path.name: self._path.stat().st_size}

    def read(self, name: str, offset: int, length: int) -> bytes:
        if name != self._path.name:
            raise NotFoundError(f"there is no {self.where}{name}.")
        with self._path.open("rb") as file:
            file.seek(offset)
            data = file.read(length)
        if len(data) != length:
            raise DataLossError(f"{self._path} ends before byte {offset + length}: copy it again.")
        return data


class _LayerTensors:
    """`input.{layer}` and `output.{layer}`, [tokens, d_model] each: what `weft datasets export` writes."""

    def __init__(self, file: SafetensorsFile, num_layers: int) -> None:
        tokens, width = file.shapes["input.0"]
        names = [f"{stream}.{layer}" for stream in ("input", "output") for layer in range(num_layers)]
        file.expect(dict.fromkeys(names, (tokens, width)), exactly=True)
        self._file = file
        self.shape = num_layers, tokens, width

    def read(self, start: int, stop: int) -> tuple[Rows, Rows]:
        layers = range(self.shape[0])
        rows = slice(start, stop)
        inputs, outputs = (
            np.stack([self._file.read(f"{stream}.{layer}", rows=rows) for layer in layers]).astype(np.float32)
            for stream in ("input", "output")
        )
        return inputs, outputs

    def close(self) -> None:
        """Nothing is open between reads."""


class _StackedTensors:
    """`act_in` and `act_out`, [tokens, layers, d_model] each: a cache of CLT-Forge that is not compressed."""

    def __init__(self, file: SafetensorsFile) -> None:
        tokens, layers, width = file.shapes["act_in"]
        file.expect({"act_out": (tokens, layers, width)})
        self._file = file
        self.shape = layers, tokens, width

    def read(self, start: int, stop: int) -> tuple[Rows, Rows]:
        inputs, outputs = (
            self._file.read(name, rows=slice(start, stop)).swapaxes(0, 1).astype(np.float32)
            for name in ("act_in", "act_out")
        )
        return inputs, outputs

    def close(self) -> None:
        """Nothing is open between reads."""


def files_of(folder: Path) -> list[Path]:
    """
    Files that hold activations, in the order of the numbers in their names; links and hidden files are left out.

    Raises:
        InvalidArgumentError: There are none, or far too many.
    """
    found = [
        path
        for path in folder.rglob("*")
        if path.suffix in (".safetensors", ".bin")
        and path.is_file()
        and not path.is_symlink()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not 1 <= len(found) <= _MAX_FILES:
        raise InvalidArgumentError(
            f"{folder} holds {len(found)} files in .safetensors or .bin, expected 1 to {_MAX_FILES}: give the folder "
            "of one export or cache",
            field="folder",
        )

    def order(path: Path) -> list[tuple[int, str]]:
        pieces = re.split(r"(\d+)", path.relative_to(folder).as_posix())
        return [(int(piece) if piece.isdigit() else -1, piece) for piece in pieces]

    return sorted(found, key=order)


def open_part(path: Path) -> Part:
    """
    One file, opened by its header.

    Raises:
        DataLossError: It is of no layout that is known here, or damaged; names the file.
    """
    if path.suffix == ".bin":
        return CompressedCache(path)
    file = SafetensorsFile(_OneFile(path), path.name)
    layers = [int(match[2]) for name in file.shapes if (match := _LAYER.fullmatch(name))]
    if len(file.shapes.get("input.0", ())) == 2:
        return _LayerTensors(file, 1 + max(layers))
    if len(file.shapes.get("act_in", ())) == 3:
        return _StackedTensors(file)
    raise DataLossError(
        f"{path} holds {table(file.shapes)}: expected `input.0` and so on, [tokens, d_model], or `act_in` and "
        "`act_out`, [tokens, layers, d_model]"
    )


def digest_of(folder: Path, files: list[Path]) -> str:
    """Hex SHA-256 over names and contents of all files."""
    whole = hashlib.sha256()
    for path in files:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while piece := file.read(_READ_BYTES):
                digest.update(piece)
        whole.update(f"{path.relative_to(folder).as_posix()} {digest.hexdigest()}\n".encode())
    return whole.hexdigest()
