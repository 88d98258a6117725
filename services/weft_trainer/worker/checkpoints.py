"""
Checkpoints of a run in the bucket.

    runs/{run}/checkpoints/{step:08d}/rank{r}-of-{R}.safetensors     by the ranks of the first data group
    runs/{run}/checkpoints/{step:08d}/part-{rank}.json               by every rank: its file's hash
    runs/{run}/checkpoints/{step:08d}/manifest.json                  by rank 0, after all others, never twice
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from weft_clt.checkpoint import FileFacts, Manifest, file_name, read_tensors, write_tensors
from weft_clt.config import TrainingConfig
from weft_clt.mesh import Mesh
from weft_common.errors import AlreadyExistsError, FailedPreconditionError, NotFoundError
from weft_store import ObjectStore
from weft_store.documents import create_json, encode_json, list_ids, read_json

__all__ = ["RunCheckpoints"]


class RunCheckpoints:
    """
    Saves and loads one run's checkpoints.

    Args:
        run: Id of the run.
        attempt: That saves.
    """

    def __init__(self, store: ObjectStore, run: str, attempt: int) -> None:
        self._store, self._run, self._attempt = store, run, attempt

    def folder(self, step: int) -> str:
        """Return the key prefix of a checkpoint, with a slash."""
        return f"runs/{self._run}/checkpoints/{step:08d}/"

    def newest_step(self) -> int:
        """Return the step of the newest complete checkpoint, 0 where there is none."""
        folders = list_ids(self._store, f"runs/{self._run}/checkpoints/", "/manifest.json")
        return max((int(name) for name in folders if name.isdigit()), default=0)

    def manifest(self, step: int) -> Manifest:
        """Read a manifest. NotFoundError."""
        return Manifest.from_document(read_json(self._store, f"{self.folder(step)}manifest.json")[0])

    def fetch(self, step: int, name: str, folder: Path) -> Path:
        """Copy a file of a checkpoint to a folder."""
        path = folder / name
        self._store.get_to_file(f"{self.folder(step)}{name}", path)
        return path

    def load(self, step: int, rank: int, size: int, into: Iterable[tuple[str, Tensor]]) -> Manifest:
        """Fill tensors from the file of a rank on the feature axis. DataLossError."""
        manifest, name = self.manifest(step), file_name(rank, size)
        with tempfile.TemporaryDirectory(prefix="weft-") as folder:
            read_tensors(self.fetch(step, name, Path(folder)), into, manifest.files[name])
        return manifest

    def save(
        self,
        step: int,
        state: Iterable[tuple[str, Tensor]],
        data: dict[str, Any],
        config: TrainingConfig,
        mesh: Mesh,
    ) -> None:
        """
        Save this rank's part; once this returns on rank 0, the checkpoint is complete.

        Collectives: two flags over the mesh, on every rank.
        """
        folder = self.folder(step)
        if mesh.any(mesh.rank == 0 and self._exists(f"{folder}manifest.json")):
            return
        part: dict[str, Any] = {"files": {}}
        if mesh.data.rank == 0:
            name = file_name(mesh.feature.rank, mesh.feature.size)
            with tempfile.TemporaryDirectory(prefix="weft-") as temporary:
                path = Path(temporary) / name
                facts = write_tensors(path, state)
                self._store.put_file(f"{folder}{name}", path)
            part["files"][name] = asdict(facts)
        self._store.put(f"{folder}part-{mesh.rank}.json", encode_json(part))
        mesh.any(False)
        if mesh.rank == 0:
            parts = [read_json(self._store, f"{folder}part-{rank}.json")[0] for rank in range(mesh.world_size)]
            files = {name: FileFacts(**facts) for each in parts for name, facts in each["files"].items()}
            manifest = Manifest(
                step=step,
                attempt=self._attempt,
                feature_ranks=mesh.feature.size,
                data_ranks=mesh.data.size,
                config_digest=config.digest(),
                files=files,
                data=data,
            )
            self._commit(f"{folder}manifest.json", manifest)

    def _commit(self, key: str, manifest: Manifest) -> None:
        present = int(read_json(self._store, f"runs/{self._run}/run.json")[0].get("attempt", self._attempt))
        if present != self._attempt:
            raise FailedPreconditionError(
                f"Attempt {self._attempt} wants to save step {manifest.step}, but attempt {present} is the "
                "present one; this one stops."
            )
        try:
            create_json(self._store, key, manifest.to_document())
        except AlreadyExistsError:
            return  # The same attempt's own, whose answer was lost.

    def _exists(self, key: str) -> bool:
        try:
            self._store.info(key)
        except NotFoundError:
            return False
        return True
