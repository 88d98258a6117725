"""
The files of a checkpoint: safetensors, written without a second copy in memory and read by any number of ranks.

Every rank of the first data group writes one file with its share of parameters, moments and clocks. The manifest, which
names each file's SHA-256, is written last by whoever owns the bucket. Ranks that are more or fewer than those that
wrote take their share out of the files that hold it; a checkpoint that is read and saved so keeps every bit.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weft_clt.config import TrainingConfig
from weft_common.errors import DataLossError, FailedPreconditionError

__all__ = [
    "FileFacts",
    "Manifest",
    "check_file",
    "file_facts",
    "file_name",
    "read_part",
    "sharded_dim",
    "write_tensors",
    "writers_of",
]

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_MAX_HEADER_BYTES = 16 << 20
_WRITTEN_BYTES = 64 << 20


@dataclass(frozen=True)
class FileFacts:
    """What a manifest says of a file."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Manifest:
    """What makes a checkpoint complete."""

    step: int
    attempt: int
    feature_ranks: int
    data_ranks: int
    config_digest: str
    files: dict[str, FileFacts]
    data: Any
    """Where the run was in its data, from which all later random numbers follow too; earlier versions had a list."""

    def to_document(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        files = {name: {"sha256": facts.sha256, "size_bytes": facts.size_bytes} for name, facts in self.files.items()}
        return {**self.__dict__, "files": files, "world_size": self.feature_ranks * self.data_ranks}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Manifest:
        """Read what `to_document` wrote. DataLossError where something is missing."""
        try:
            fields = {name: document[name] for name in cls.__dataclass_fields__}
            fields["files"] = {name: FileFacts(**facts) for name, facts in fields["files"].items()}
            return cls(**fields)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataLossError(
                f"A checkpoint's manifest lacks or mistakes {error}; resume from another checkpoint."
            ) from error

    def check_run(self, config: TrainingConfig) -> None:
        """Refuse to go on with another configuration; the mesh may differ. FailedPreconditionError."""
        if not isinstance(self.data, dict):
            raise FailedPreconditionError(
                f"The checkpoint of step {self.step} is of an earlier version of weft, which drew tokens in another "
                "order: it can be evaluated and exported; start a new run to train."
            )
        digest = config.digest()
        if self.config_digest != digest:
            raise FailedPreconditionError(
                f"The checkpoint of step {self.step} is of a run with configuration {self.config_digest[:12]}, "
                f"this one has {digest[:12]}; start a new run for a new configuration."
            )


def file_name(rank: int, size: int) -> str:
    """
    Name the file of a rank on the feature axis.

    >>> file_name(0, 2)
    'rank0-of-2.safetensors'
    """
    return f"rank{rank}-of-{size}.safetensors"


def sharded_dim(name: str) -> int | None:
    """
    Return the dim of a checkpoint's tensor that ranks divide between them; None where every rank holds all of it.

    >>> [sharded_dim(name) for name in ("w_enc", "adam_second.w_dec", "silent_tokens")]
    [1, -1, None]
    """
    last = name.rpartition(".")[2]
    if last == "silent_tokens":
        return None
    return -1 if last in ("w_dec", "b_dec") else 1


def writers_of(rank: int, size: int, wrote: int) -> range:
    """
    Name the ranks, of those that wrote a checkpoint, whose files hold a part of this rank's share.

    >>> writers_of(1, 4, 2), writers_of(0, 1, 2), writers_of(1, 2, 3)
    (range(0, 1), range(0, 2), range(1, 3))
    """
    return range(rank * wrote // size, -(-(rank + 1) * wrote // size))


def write_tensors(path: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write contiguous tensors as a safetensors file, in the order given."""
    listed = list(tensors)
    header: dict[str, Any] = {"__metadata__": {"format": "weft-checkpoint-1"}}
    offset = 0
    for name, tensor in listed:
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)))
        file.write(encoded)
        for _, tensor in listed:
            for part in _bytes(tensor):
                file.write(part)


def _bytes(tensor: Tensor) -> Iterator[memoryview]:
    """Yield a tensor's bytes; of one on a GPU, no more of them are on the host at a time than are written at once."""
    flat = tensor.detach().reshape(-1).view(torch.uint8)
    for part in torch.split(flat, _WRITTEN_BYTES):
        held: Any = part.cpu().numpy()
        yield memoryview(held)


def file_facts(path: Path) -> FileFacts:
    """Return what a manifest says of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")  # through one small buffer: it is done beside steps
    return FileFacts(digest.hexdigest(), path.stat().st_size)


def check_file(path: Path, facts: FileFacts) -> None:
    """Compare a file with its manifest. DataLossError."""
    found = file_facts(path)
    if found != facts:
        raise DataLossError(
            f"{path.name} has SHA-256 {found.sha256} and {found.size_bytes} bytes, its manifest says {facts.sha256} "
            f"and {facts.size_bytes}; resume from another checkpoint."
        )


class _File:
    """A safetensors file whose tensors are views of it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            prefix = file.read(8)
            size = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 0 < size <= _MAX_HEADER_BYTES:
                raise DataLossError(f"{path.name} is no safetensors file; resume from another checkpoint.")
            try:
                self._header = json.loads(file.read(size))
            except ValueError as error:
                raise DataLossError(
                    f"{path.name} has a broken header ({error}); resume from another checkpoint."
                ) from error
            self._start = 8 + size
            # Copy on write: torch refuses what it may not write to, and nothing is written.
            self._bytes = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)

    def tensor(self, name: str, dtype: torch.dtype, shape: list[int]) -> Tensor:
        """Give a tensor. DataLossError where it is not of this type and shape."""
        entry, wanted = self._header.get(name), {"dtype": _NAMES[dtype], "shape": shape}
        if entry is None or {key: entry[key] for key in wanted} != wanted:
            raise DataLossError(f"{self._path.name} has {name} as {entry}, expected {wanted}; resume from another one.")
        first, last = (self._start + offset for offset in entry["data_offsets"])
        held = self._bytes[first:last]
        if held.size != int(np.prod(shape)) * dtype.itemsize:
            raise DataLossError(f"{self._path.name} ends within {name}; resume from another checkpoint.")
        # A smaller tensor before it may have left it at an odd place.
        aligned = held if first % dtype.itemsize == 0 else held.copy()
        return torch.from_numpy(aligned).view(dtype).view(shape)


def read_part(path: Path, writer: int, wrote: int, into: Iterable[tuple[str, Tensor]], rank: int, size: int) -> None:
    """
    Fill what one file holds of one rank's contiguous tensors.

    Args:
        path: The file, checked against its manifest.
        writer: Who wrote it, one of `writers_of(rank, size, wrote)`; the others' files fill the rest.
        wrote: Ranks that wrote the checkpoint.
        into: Tensors by name, as `write_tensors` took them.
        rank: Who reads, of `size`.

    Raises:
        DataLossError: The file lacks a tensor, or has it of another type or shape.
    """
    file = _File(path)
    for name, tensor in into:
        dim = sharded_dim(name)
        if dim is None:
            tensor.copy_(file.tensor(name, tensor.dtype, list(tensor.shape)))
            continue
        dim %= tensor.dim()
        own = tensor.shape[dim]
        theirs, rest = divmod(own * size, wrote)
        if rest:
            raise DataLossError(f"{name} of {own * size} cannot have been written by {wrote} ranks.")
        first = rank * own
        low, high = max(first, writer * theirs), min(first + own, (writer + 1) * theirs)
        shape = [*tensor.shape[:dim], theirs, *tensor.shape[dim + 1 :]]
        part = file.tensor(name, tensor.dtype, shape).narrow(dim, low - writer * theirs, high - low)
        tensor.narrow(dim, low - first, high - low).copy_(part)
