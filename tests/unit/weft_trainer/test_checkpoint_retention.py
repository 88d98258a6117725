"""Which checkpoints stay: the last, the best, and the one that somebody reads."""

from collections.abc import Callable

import pytest

from weft_common.errors import NotFoundError
from weft_store.adapters.memory import MemoryObjectStore
from weft_store.documents import create_json, encode_json, list_ids
from weft_store.port import ObjectInfo
from weft_trainer.core.retention import HOLD_S, held, hold, prune
from weft_trainer.core.runs import RunRepository


def _save(store: MemoryObjectStore, step: int, explained_variance: float | None = None) -> None:
    folder = f"runs/r/checkpoints/{step:08d}/"
    store.put(f"{folder}rank0-of-1.safetensors", b"weights")
    create_json(store, f"{folder}manifest.json", {"step": step})
    if explained_variance is not None:
        store.put(f"runs/r/evaluations/{step:08d}.json", encode_json({"explained_variance": explained_variance}))


def _steps(store: MemoryObjectStore) -> list[int]:
    return [int(name) for name in list_ids(store, "runs/r/checkpoints/", "/manifest.json")]


@pytest.fixture
def store() -> MemoryObjectStore:
    """A run with five checkpoints, the second of which is the best."""
    store = MemoryObjectStore()
    for step, explained_variance in ((10, 0.1), (20, 0.5), (30, 0.3), (40, None), (50, 0.4)):
        _save(store, step, explained_variance)
    return store


def test_last_and_best_checkpoints_stay(store: MemoryObjectStore) -> None:
    """All objects of the others are gone; asked again, nothing is left to do."""
    assert prune(store, "r", 2) == [10, 30]
    assert _steps(store) == [20, 40, 50]
    assert {info.key.split("/")[3] for info in store.list("runs/r/checkpoints/")} == {
        "00000020",
        "00000040",
        "00000050",
    }
    assert prune(store, "r", 2) == []


def test_checkpoint_that_is_read_stays_until_it_is_not(store: MemoryObjectStore) -> None:
    """A hold keeps the checkpoint whole, and its end lets it go."""
    with hold(store, "r", 10):
        assert prune(store, "r", 1) == [30, 40]
        assert store.get("runs/r/checkpoints/00000010/rank0-of-1.safetensors") == b"weights"
    assert prune(store, "r", 1) == [10]
    with pytest.raises(NotFoundError, match="checkpoint 10"), hold(store, "r", 10):
        pass
    assert not list(store.list("runs/r/checkpoints/00000010/"))


class HoldBetween(MemoryObjectStore):
    """Somebody begins to read in the moment in which a manifest goes."""

    begin: Callable[[], None] | None = None

    def delete(self, key: str) -> None:
        super().delete(key)
        if key.endswith("manifest.json") and self.begin is not None:
            begin, self.begin = self.begin, None
            begin()


def test_reader_that_comes_while_a_checkpoint_goes_keeps_it() -> None:
    """Its hold was written before it looked for the manifest, so the manifest comes back."""
    store = HoldBetween()
    for step in (10, 20):
        _save(store, step)
    store.begin = lambda: store.put("runs/r/checkpoints/00000010/holds/x", b"") and None
    assert prune(store, "r", 1) == []
    assert _steps(store) == [10, 20]


def test_hold_of_a_killed_reader_ends_after_a_day(store: MemoryObjectStore) -> None:
    """Nobody takes it away, and it does not keep a checkpoint for ever."""
    info = store.put("runs/r/checkpoints/00000010/holds/x", b"")
    assert held(store, "r", 10, info.modified_s + HOLD_S - 1)
    assert not held(store, "r", 10, info.modified_s + HOLD_S + 1)


def test_leftovers_of_a_save_that_was_killed_go(store: MemoryObjectStore) -> None:
    """Files without a manifest go once a later checkpoint is complete; those of a save under way stay."""
    store.put("runs/r/checkpoints/00000035/rank0-of-1.safetensors", b"half")
    store.put("runs/r/checkpoints/00000060/rank0-of-1.safetensors", b"under way")
    assert prune(store, "r", 5) == [35]
    assert list(store.list("runs/r/checkpoints/00000060/"))
    assert _steps(store) == [10, 20, 30, 40, 50]


class GoneBetween(MemoryObjectStore):
    """A checkpoint goes in the moment in which its manifest was read."""

    def get_with_info(self, key: str) -> tuple[bytes, ObjectInfo]:
        found = super().get_with_info(key)
        if key == "runs/r/checkpoints/00000010/manifest.json":
            for info in list(self.list("runs/r/checkpoints/00000010/")):
                self.delete(info.key)
        return found


async def test_list_of_checkpoints_goes_on_without_one_that_goes() -> None:
    """Whoever lists while ranks delete is told of those that stay."""
    store = GoneBetween()
    for step in (10, 20):
        _save(store, step)
    assert [found.step for found in await RunRepository(store).checkpoints("r")] == [20]
    assert not list(store.list("runs/r/checkpoints/00000010/"))
