"""
Goes on from the newest checkpoint that is whole.

One that is damaged, which no rank can know before it has read its own share, is left for the next older one by all
ranks together. Its manifest is put aside once an older one is found to be whole: from then on it counts for nobody,
and its step can be saved again. Where none is whole nothing is put aside, so that the next start finds the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from weft_clt.checkpoint import Manifest
from weft_clt.mesh import Mesh
from weft_common.errors import DataLossError, NotFoundError
from weft_common.logging import get_logger
from weft_trainer.worker.background import Background, done, together
from weft_trainer.worker.checkpoints import RunCheckpoints

__all__ = ["Damage", "Resumed", "load_newest"]

_MOST_TOLD = 3

_log = get_logger(__name__)


@dataclass(frozen=True)
class Damage:
    """
    A checkpoint that is complete and cannot be read.

    Args:
        step: Its step.
        reason: What this rank found; empty where only others found something.
        is_ours: No rank below this one found anything, so this one tells it.
    """

    step: int
    reason: str
    is_ours: bool


@dataclass(frozen=True)
class Resumed:
    """
    Where a run goes on.

    Args:
        manifest: Of the checkpoint that was loaded; None where the run has none, and begins.
        damaged: Those that were left for it, newest first.
    """

    manifest: Manifest | None
    damaged: tuple[Damage, ...] = ()


def load_newest(
    checkpoints: RunCheckpoints, mesh: Mesh, background: Background, load: Callable[[int], Manifest]
) -> Resumed:
    """
    Load the newest checkpoint that every rank can read its share of.

    Args:
        load: Fills this rank's state from a step; what it leaves behind where it fails is filled by the next.

    Raises:
        DataLossError: There are checkpoints, and none of them is whole.

    Collectives: the choice of each step, what came of it, and those of `together`.
    """
    damaged: list[Damage] = []
    while step := _next_step(checkpoints, mesh, background, damaged):
        found = together(mesh, background.submit(f"the load of step {step}", partial(_try, load, step)))
        reason = found if isinstance(found, str) else ""
        teller = mesh.world_size - mesh.largest(mesh.world_size - mesh.rank if reason else 0)
        if teller == mesh.world_size:
            assert isinstance(found, Manifest)
            _put_aside(checkpoints, mesh, background, damaged)
            return Resumed(found, tuple(damaged))
        if reason:
            _log.error("checkpoint_damaged", step=step, details=reason)
        damaged.append(Damage(step, reason, mesh.rank == teller))
    if damaged:
        said = "; ".join(f"step {each.step}: {each.reason or 'another rank says why'}" for each in damaged[:_MOST_TOLD])
        raise DataLossError(
            f"The run has {len(damaged)} complete checkpoints, and none of them is whole ({said}). Restore one from a "
            "backup of the bucket, or start a new run."
        )
    return Resumed(None)


def _next_step(checkpoints: RunCheckpoints, mesh: Mesh, background: Background, damaged: list[Damage]) -> int:
    """Return the newest step that was not tried yet, 0 where there is none; rank 0 says for all."""
    look = done(0)
    if mesh.rank == 0:
        before = damaged[-1].step if damaged else None
        look = background.submit("the newest checkpoint", lambda: checkpoints.newest_step(before))
    return mesh.largest(together(mesh, look))


def _try(load: Callable[[int], Manifest], step: int) -> Manifest | str:
    """Load a step, or say what is wrong with it; damage is no failure of the background."""
    try:
        return load(step)
    except (DataLossError, NotFoundError) as error:
        return error.message


def _put_aside(checkpoints: RunCheckpoints, mesh: Mesh, background: Background, damaged: list[Damage]) -> None:
    def work() -> None:
        for each in damaged:
            checkpoints.put_aside(each.step)

    together(mesh, background.submit("damaged checkpoints", work) if damaged and mesh.rank == 0 else done(None))
