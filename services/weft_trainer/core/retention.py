"""
Which checkpoints of a run stay, and how one that is being read is kept.

    runs/{run}/checkpoints/{step:08d}/holds/{id}      somebody reads this checkpoint

A reader writes its hold first and looks for the manifest afterwards. Whoever deletes takes the manifest away first and
looks for holds afterwards; where it finds one it puts the manifest back. So either the reader finds no manifest, or its
hold is found. A hold that a killed reader left counts for a day, by the bucket's own clock.
"""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from weft_common.errors import NotFoundError
from weft_common.logging import get_logger
from weft_store import ObjectStore
from weft_store.documents import read_json

__all__ = ["HOLD_S", "best_step", "held", "hold", "prune"]

HOLD_S = 86_400.0
"""How long a hold counts that nobody takes away."""

_log = get_logger(__name__)


def _folder(run: str, step: int) -> str:
    return f"runs/{run}/checkpoints/{step:08d}/"


@contextmanager
def hold(store: ObjectStore, run: str, step: int) -> Iterator[None]:
    """Keep a checkpoint from being deleted. NotFoundError where it is not complete, or not any more."""
    key = f"{_folder(run, step)}holds/{uuid.uuid4().hex}"
    store.put(key, b"")
    try:
        try:
            store.info(f"{_folder(run, step)}manifest.json")
        except NotFoundError:
            raise NotFoundError(
                f"runs/{run} has no complete checkpoint {step} any more: choose another with ListCheckpoints.",
                field="checkpoint",
            ) from None
        yield
    finally:
        store.delete(key)


def held(store: ObjectStore, run: str, step: int, now_s: float) -> bool:
    """Tell whether somebody reads a checkpoint; `now_s` is the bucket's time."""
    return any(now_s - info.modified_s < HOLD_S for info in store.list(f"{_folder(run, step)}holds/"))


def best_step(store: ObjectStore, run: str, steps: list[int]) -> int:
    """Return which of some checkpoints explained most variance when it was evaluated; 0 where none was."""
    best, best_variance = 0, float("-inf")
    for step in steps:
        for key in (f"runs/{run}/evaluations/{step:08d}.json", f"{_folder(run, step)}evaluation.json"):
            try:
                evaluation, _ = read_json(store, key)
            except NotFoundError:
                continue
            variance = float(evaluation.get("explained_variance") or 0.0)
            if variance > best_variance:
                best, best_variance = step, variance
    return best


def prune(store: ObjectStore, run: str, keep_last: int) -> list[int]:
    """
    Delete all complete checkpoints but the last so many, the best by evaluation, and those that are being read.

    What an unfinished save left before the newest complete checkpoint goes too. Only the run's present ranks may call
    this, after they have completed a checkpoint.

    Args:
        keep_last: At least 1.

    Returns:
        The steps that were deleted.
    """
    prefix = f"runs/{run}/checkpoints/"
    found = sorted(int(name) for name in store.list_folders(prefix) if name.isdigit())
    complete: list[int] = []
    now_s = 0.0
    for step in found:
        try:
            now_s = max(now_s, store.info(f"{_folder(run, step)}manifest.json").modified_s)
        except NotFoundError:
            continue
        complete.append(step)
    kept = {*complete[-keep_last:], best_step(store, run, complete)}
    gone = []
    for step in found:
        if step in kept or step > max(complete, default=0) or held(store, run, step, now_s):
            continue
        if _delete(store, run, step, now_s):
            gone.append(step)
    if gone:
        _log.info("checkpoints_deleted", run=run, steps=gone, kept=sorted(kept & set(complete)))
    return gone


def _delete(store: ObjectStore, run: str, step: int, now_s: float) -> bool:
    folder = _folder(run, step)
    manifest_key = f"{folder}manifest.json"
    try:
        manifest = store.get(manifest_key)
    except NotFoundError:
        manifest = b""
    store.delete(manifest_key)
    if held(store, run, step, now_s):
        if manifest:
            store.put(manifest_key, manifest)
        return False
    for info in store.list(folder):
        store.delete(info.key)
    return True
