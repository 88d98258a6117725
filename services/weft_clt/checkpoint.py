"""
The files of a checkpoint: safetensors, written and read without a second copy in memory.

Every rank of the first data group writes one file with its share of parameters, moments and clocks. The manifest, which
names each file's SHA-256, is written last by whoever owns the bucket.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weft_common.errors import DataLossError, FailedPreconditionError

__all__ = ["FileFacts", "Manifest", "file_name", "read_tensors", "write_tensors"]

_NAMES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}
_MAX_HEADER_BYTES = 16 << 20
_DIGEST_BYTES = 8 << 20


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
    data: dict[str, Any]
    """Where the run was in its data, from which all later random numbers follow too; the same for every rank."""

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

    def check_run(self, config_digest: str, feature_ranks: int, data_ranks: int) -> None:
        """Refuse to go on with another configuration or another mesh. FailedPreconditionError."""
        if self.config_digest != config_digest:
            raise FailedPreconditionError(
                f"The checkpoint of step {self.step} is of a run with configuration {self.config_digest[:12]}, "
                f"this one has {config_digest[:12]}; start a new run for a new configuration."
            )
        if (self.feature_ranks, self.data_ranks) != (feature_ranks, data_ranks):
            raise FailedPreconditionError(
                f"The checkpoint of step {self.step} was saved by {self.feature_ranks} x {self.data_ranks} ranks, "
                f"this run has {feature_ranks} x {data_ranks}; resume with as many."
            )


def file_name(rank: int, size: int) -> str:
    """
    Name the file of a rank on the feature axis.

    >>> file_name(0, 2)
    'rank0-of-2.safetensors'
    """
    return f"rank{rank}-of-{size}.safetensors"


def write_tensors(path: Path, tensors: Iterable[tuple[str, Tensor]]) -> FileFacts:
    """Write contiguous tensors as a safetensors file, in the order given, and return its hash and size."""
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
    digest = hashlib.sha256()
    size_bytes = 0
    with path.open("wb") as file:
        parts: list[bytes | memoryview] = [struct.pack("<Q", len(encoded)), encoded]
        for part in parts + [_bytes(tensor) for _, tensor in listed]:
            digest.update(part)
            size_bytes += file.write(part)
    return FileFacts(digest.hexdigest(), size_bytes)


def _bytes(tensor: Tensor) -> memoryview:
    flat: Any = tensor.reshape(-1).numpy().view(np.uint8)
    return memoryview(flat)


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    with path.open("rb") as file:
        prefix = file.read(8)
        size = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 0 < size <= _MAX_HEADER_BYTES:
            raise DataLossError(f"{path.name} is no safetensors file; resume from another checkpoint.")
        try:
            header = json.loads(file.read(size))
        except ValueError as error:
            raise DataLossError(
                f"{path.name} has a broken header ({error}); resume from another checkpoint."
            ) from error
    return header, 8 + size


def read_tensors(path: Path, into: Iterable[tuple[str, Tensor]], facts: FileFacts) -> None:
    """
    Fill contiguous tensors from a file, after its hash was checked.

    Raises:
        DataLossError: The file is not the one that the manifest names, or lacks a tensor.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_DIGEST_BYTES):
            digest.update(part)
    if digest.hexdigest() != facts.sha256:
        raise DataLossError(
            f"{path.name} has SHA-256 {digest.hexdigest()}, its manifest says {facts.sha256}; "
            "resume from another checkpoint."
        )
    header, start = _read_header(path)
    with path.open("rb") as file:
        for name, tensor in into:
            entry = header.get(name)
            wanted = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape)}
            if entry is None or {key: entry[key] for key in wanted} != wanted:
                raise DataLossError(f"{path.name} has {name} as {entry}, expected {wanted}; resume from another one.")
            file.seek(start + entry["data_offsets"][0])
            if file.readinto(_bytes(tensor)) != tensor.nbytes:
                raise DataLossError(f"{path.name} ends within {name}; resume from another checkpoint.")
