"""
Checkpoints of a run in the bucket.

    runs/{run}/checkpoints/{step:08d}/attempt{n}-rank{r}-of-{R}.safetensors     by the ranks of the first data group
    runs/{run}/checkpoints/{step:08d}/attempt{n}-part-rank{r}-of-{R}.json       by the same ranks: the file's hash
    runs/{run}/checkpoints/{step:08d}/manifest.json      by rank 0, after all others
    runs/{run}/checkpoints/{step:08d}/damaged.json       by rank 0: a manifest whose files were not whole

Every attempt has names of its own, and the manifest names the files of one. A rank that another start has taken the
place of looks whether it is still of the present attempt before each write; where it falls asleep between the look and
the write, it writes what no other attempt's manifest names.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from weft_clt.checkpoint import (
    FileFacts,
    Manifest,
    check_file,
    file_facts,
    file_name,
    read_part,
    writers_of,
)
from weft_clt.config import TrainingConfig
from weft_clt.mesh import Mesh
from weft_common.errors import AlreadyExistsError, DataLossError, FailedPreconditionError, NotFoundError
from weft_store import ObjectStore
from weft_store.documents import create_json, encode_json, list_ids, read_json
from weft_trainer.core.scratch import ScratchFolder

__all__ = ["RunCheckpoints"]


class RunCheckpoints:
    """
    Reads one run's checkpoints, and writes their objects; `CheckpointSaver` says when.

    Args:
        run: Id of the run.
        attempt: That saves.
    """

    def __init__(self, store: ObjectStore, run: str, attempt: int) -> None:
        self._store, self._run, self._attempt = store, run, attempt

    def folder(self, step: int) -> str:
        """Return the key prefix of a checkpoint, with a slash."""
        return f"runs/{self._run}/checkpoints/{step:08d}/"

    def _own(self, name: str) -> str:
        return f"attempt{self._attempt}-{name}"

    def _part(self, step: int, stem: str) -> str:
        return f"{self.folder(step)}{self._own(f'part-{stem}.json')}"

    def newest_step(self, before: int | None = None) -> int:
        """Return the step of the newest complete checkpoint, or of those before a step; 0 where there is none."""
        folders = list_ids(self._store, f"runs/{self._run}/checkpoints/", "/manifest.json")
        steps = (int(name) for name in folders if name.isdigit())
        return max((step for step in steps if before is None or step < before), default=0)

    def put_aside(self, step: int) -> None:
        """
        Make a damaged checkpoint an incomplete one; what its manifest said stays in `damaged.json`.

        Raises:
            FailedPreconditionError: Another attempt is the present one.
        """
        self._check_present(step)
        key = f"{self.folder(step)}manifest.json"
        try:
            said = self._store.get(key)
        except NotFoundError:
            return
        self._store.put(f"{self.folder(step)}damaged.json", said)
        self._store.delete(key)

    def is_complete(self, step: int) -> bool:
        """Tell whether there is a complete checkpoint of a step."""
        try:
            self._store.info(f"{self.folder(step)}manifest.json")
        except NotFoundError:
            return False
        return True

    def manifest(self, step: int) -> Manifest:
        """Read a manifest. NotFoundError."""
        return Manifest.from_document(read_json(self._store, f"{self.folder(step)}manifest.json")[0])

    def load(self, step: int, rank: int, size: int, into: Iterable[tuple[str, Tensor]]) -> Manifest:
        """Fill tensors with the share of one of `size` ranks on the feature axis, whoever wrote it. DataLossError."""
        manifest, tensors = self.manifest(step), list(into)
        wrote = manifest.feature_ranks
        for writer in writers_of(rank, size, wrote):
            name = _name_in(manifest, file_name(writer, wrote))
            # One file at a time is on this machine's disk.
            with ScratchFolder() as scratch:
                path = scratch.path / name
                self._store.get_to_file(f"{self.folder(step)}{name}", path)
                check_file(path, manifest.files[name])
                read_part(path, writer, wrote, tensors, rank, size)
        return manifest

    def upload(self, step: int, path: Path) -> None:
        """
        Put one rank's file, and beside it what the manifest will say of it.

        Raises:
            FailedPreconditionError: Another attempt is the present one.
        """
        self._check_present(step)
        facts, name = file_facts(path), self._own(path.name)
        self._store.put_file(f"{self.folder(step)}{name}", path)
        part = {"name": name, **asdict(facts)}
        self._store.put(self._part(step, path.stem), encode_json(part))

    def commit(self, step: int, data: dict[str, Any], config: TrainingConfig, mesh: Mesh) -> None:
        """
        Make a checkpoint complete, whose files all lie in the bucket.

        Raises:
            FailedPreconditionError: Another attempt is the present one.
        """
        size = mesh.feature.size
        names = [Path(file_name(rank, size)).stem for rank in range(size)]
        parts = [read_json(self._store, self._part(step, name))[0] for name in names]
        manifest = Manifest(
            step=step,
            attempt=self._attempt,
            feature_ranks=size,
            data_ranks=mesh.data.size,
            config_digest=config.digest(),
            files={part["name"]: FileFacts(part["sha256"], part["size_bytes"]) for part in parts},
            data=data,
        )
        self._check_present(step)
        key = f"{self.folder(step)}manifest.json"
        try:
            create_json(self._store, key, manifest.to_document())
        except AlreadyExistsError:
            # The same attempt's own, whose answer was lost; or a late one of an earlier attempt, which gives way to
            # what this one goes on from.
            there, version = read_json(self._store, key)
            if int(there["attempt"]) < self._attempt:
                self._store.put(key, encode_json(manifest.to_document()), if_match=version)

    def _check_present(self, step: int) -> None:
        present = int(read_json(self._store, f"runs/{self._run}/run.json")[0].get("attempt", self._attempt))
        if present != self._attempt:
            raise FailedPreconditionError(
                f"Attempt {self._attempt} wants to write step {step}, but attempt {present} is the present one; "
                "this one stops."
            )


def _name_in(manifest: Manifest, name: str) -> str:
    """Return what a manifest calls a rank's file; earlier versions had no attempt in it. DataLossError."""
    for own in (f"attempt{manifest.attempt}-{name}", name):
        if own in manifest.files:
            return own
    raise DataLossError(f"The manifest of step {manifest.step} names no {name}; resume from another checkpoint.")
