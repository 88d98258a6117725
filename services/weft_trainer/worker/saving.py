"""
Saves checkpoints while steps go on.

    begin: all ranks copy their share to a file of this machine, which is all that steps wait for
    then, in a thread: hash, upload; once every rank's is done, rank 0 commits the manifest, and deletes old checkpoints

The copy is a file and not memory, because a second copy of parameters and moments would be three quarters of a rank's
memory again; it mostly stays in the page cache. TMPDIR on a tmpfs makes memory of it. What a killed rank leaves of it
goes when the next one starts.
Every call is made on all ranks, after the same step.
"""

from __future__ import annotations

import errno
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from weft_clt.checkpoint import file_name, write_tensors
from weft_clt.config import TrainingConfig
from weft_clt.mesh import Mesh
from weft_common.errors import StorageFullError
from weft_common.logging import get_logger
from weft_trainer.core.scratch import ScratchFolder
from weft_trainer.worker.background import Background, done, together
from weft_trainer.worker.checkpoints import RunCheckpoints

__all__ = ["CheckpointSaver"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_log = get_logger(__name__)


@dataclass
class _Flight:
    """A checkpoint on its way: first uploaded by every rank, then committed by rank 0."""

    step: int
    data: dict[str, Any]
    uploaded: Future[None]
    committed: Future[None] | None = None


class CheckpointSaver:
    """
    Saves one rank's part of a run's checkpoints, one after the other.

    Args:
        background: Where uploads and commits are done.
        saved: Called on rank 0, in the background, once a checkpoint is complete.
    """

    def __init__(
        self,
        checkpoints: RunCheckpoints,
        config: TrainingConfig,
        mesh: Mesh,
        background: Background,
        saved: Callable[[int], None],
    ) -> None:
        self._checkpoints, self._config, self._mesh = checkpoints, config, mesh
        self._background, self._saved = background, saved
        self._flight: _Flight | None = None

    def begin(self, step: int, state: Iterable[tuple[str, Tensor]], data: dict[str, Any]) -> None:
        """
        Copy this rank's state and start to save it; first wait for the checkpoint before, if that is still on its way.

        Raises:
            StorageFullError: There is no space for the copy.
        """
        self.finish()
        mesh = self._mesh
        look = done(False)
        if mesh.rank == 0:
            look = self._background.submit(f"a look at step {step}", lambda: self._checkpoints.is_complete(step))
        if mesh.any(together(mesh, look)):
            return
        self._flight = _Flight(step, data, done(None) if mesh.data.rank else self._upload(step, state))

    def _upload(self, step: int, state: Iterable[tuple[str, Tensor]]) -> Future[None]:
        axis, begun_s = self._mesh.feature, time.perf_counter()
        folder = ScratchFolder()
        path = folder.path / file_name(axis.rank, axis.size)
        try:
            write_tensors(path, state)
        except OSError as error:
            folder.cleanup()
            if error.errno not in _FULL:
                raise
            raise StorageFullError(
                f"there is no space for this rank's copy of step {step} below {tempfile.gettempdir()}: free some, or "
                "set TMPDIR to a larger place."
            ) from error
        copied_s = time.perf_counter() - begun_s

        def upload() -> None:
            self._checkpoints.upload(step, path)
            _log.info(
                "checkpoint_uploaded",
                step=step,
                size_bytes=path.stat().st_size,
                steps_waited_s=round(copied_s, 3),
                after_s=round(time.perf_counter() - begun_s, 3),
            )
            folder.cleanup()

        return self._background.submit(f"the upload of step {step}", upload)

    def advance(self) -> None:
        """See how far the checkpoint on its way is; raise what the background has failed with."""
        self._background.check()
        flight = self._flight
        if flight is None:
            return
        if flight.committed is None:
            if not self._mesh.any(not flight.uploaded.done()):
                flight.uploaded.result()
                self._commit(flight)
        elif self._mesh.rank or flight.committed.done():
            flight.committed.result()
            self._flight = None

    def finish(self) -> None:
        """Wait until no checkpoint is on its way: then the last one is complete, for every rank."""
        flight = self._flight
        if self._mesh.any(flight is not None):
            together(self._mesh, flight.uploaded if flight else done(None))
            if flight and flight.committed is None:
                self._commit(flight)
            together(self._mesh, flight.committed if flight and flight.committed else done(None))
            self._flight = None
        self._background.check()

    def _commit(self, flight: _Flight) -> None:
        if self._mesh.rank:
            flight.committed = done(None)
            return
        step, data = flight.step, flight.data

        def commit() -> None:
            self._checkpoints.commit(step, data, self._config, self._mesh)
            self._saved(step)

        flight.committed = self._background.submit(f"the commit of step {step}", commit)
