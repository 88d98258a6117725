"""All ranks go on from one checkpoint, whichever of them finds another damaged."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from weft_clt.checkpoint import Manifest
from weft_clt.mesh import Mesh, SingleAxis
from weft_common.errors import DataLossError, UnavailableError
from weft_store.adapters.memory import MemoryObjectStore
from weft_store.documents import encode_json
from weft_trainer.worker.background import Background
from weft_trainer.worker.checkpoints import RunCheckpoints
from weft_trainer.worker.resuming import Resumed, load_newest


@dataclass
class _Meeting:
    """Where threads that are ranks meet."""

    size: int
    found: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.size, timeout=30)
        self.found = [torch.zeros(1)] * self.size


@dataclass
class _ThreadAxis(SingleAxis):
    """An axis whose ranks are threads; only what resuming needs."""

    meeting: _Meeting = field(default_factory=lambda: _Meeting(1))

    def max_(self, tensor: Tensor) -> Tensor:
        self.meeting.found[self.rank] = tensor.clone()
        self.meeting.barrier.wait()
        largest = torch.stack(self.meeting.found).amax(0)
        self.meeting.barrier.wait()
        return tensor.copy_(largest)


def _resume(store: MemoryObjectStore, damaged: dict[int, set[int]], size: int = 2) -> list[Resumed | DataLossError]:
    """Resume on all ranks; `damaged` says which ranks cannot read their share of a step."""
    meeting = _Meeting(size)

    def rank(number: int) -> Resumed | DataLossError:
        mesh = Mesh(_ThreadAxis(number, size, meeting=meeting), SingleAxis())

        def load(step: int) -> Manifest:
            if number in damaged.get(step, ()):
                raise DataLossError(f"rank {number} cannot read step {step}")
            return Manifest(step, 1, size, 1, "", {}, {})

        try:
            return load_newest(RunCheckpoints(store, "r", 2), mesh, Background(0.0), load)
        except DataLossError as error:
            return error

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(rank, range(size)))


@pytest.fixture
def store() -> MemoryObjectStore:
    """A run with three complete checkpoints."""
    store = MemoryObjectStore()
    store.put("runs/r/run.json", encode_json({"attempt": 2}))
    for step in (2, 4, 6):
        store.put(f"runs/r/checkpoints/{step:08d}/manifest.json", encode_json({"step": step}))
    return store


def _is_complete(store: MemoryObjectStore, step: int) -> bool:
    return RunCheckpoints(store, "r", 2).is_complete(step)


def test_ranks_leave_together_what_one_of_them_cannot_read(store: MemoryObjectStore) -> None:
    """Each damage is told by the lowest rank that found it, and by no other."""
    results = _resume(store, {6: {1}, 4: {0, 1}})
    told = []
    for found in results:
        assert isinstance(found, Resumed)
        assert found.manifest is not None
        assert found.manifest.step == 2
        told.append([(each.step, each.reason) for each in found.damaged if each.is_ours])
    assert told == [[(4, "rank 0 cannot read step 4")], [(6, "rank 1 cannot read step 6")]]
    assert [_is_complete(store, step) for step in (2, 4, 6)] == [True, False, False]
    assert store.get("runs/r/checkpoints/00000006/damaged.json") == encode_json({"step": 6})


def test_ranks_end_together_where_nothing_is_whole(store: MemoryObjectStore) -> None:
    """Every one fails, those that found nothing too; the checkpoints stay for whoever restores them."""
    results = _resume(store, {step: {1} for step in (2, 4, 6)})
    assert all(isinstance(found, DataLossError) for found in results)
    assert "step 6: rank 1 cannot read step 6" in str(results[1])
    assert "another rank says why" in str(results[0])
    assert all(_is_complete(store, step) for step in (2, 4, 6))


def test_run_without_checkpoints_begins() -> None:
    """Nothing to load is no damage."""
    assert _resume(MemoryObjectStore(), {}) == [Resumed(None), Resumed(None)]


def test_bucket_that_is_away_is_no_damage(store: MemoryObjectStore) -> None:
    """What a retry may help ends the attempt, and leaves the newest checkpoint for the next."""

    def load(step: int) -> Manifest:
        raise UnavailableError("the bucket answers 503")

    mesh = Mesh(SingleAxis(), SingleAxis())
    with pytest.raises(UnavailableError):
        load_newest(RunCheckpoints(store, "r", 2), mesh, Background(0.0), load)
    assert _is_complete(store, 6)
