"""Leases are held by one replica at a time, pass on when they expire, and are done once."""

import pytest

from weft_activations.core.leases import LeaseBoard
from weft_store.adapters.memory import MemoryObjectStore


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def boards(clock: Clock) -> tuple[LeaseBoard, LeaseBoard]:
    store = MemoryObjectStore()
    a, b = (LeaseBoard(store, "h", 2, owner, lease_s=10, clock=clock) for owner in ("a", "b"))
    return a, b


def test_replicas_take_different_leases(boards: tuple[LeaseBoard, LeaseBoard]) -> None:
    """What one holds, the other passes over."""
    a, b = boards
    assert (a.take(), b.take(), a.take(), b.take()) == (0, 1, None, None)


def test_expired_lease_passes_on(boards: tuple[LeaseBoard, LeaseBoard], clock: Clock) -> None:
    """A replica without a sign of life loses its lease; one that gave a sign keeps it."""
    a, b = boards
    assert (a.take(), a.take()) == (0, 1)
    clock.now += 8
    a.extend([1])
    assert b.take() is None
    clock.now += 5
    assert (b.take(), b.take()) == (0, None)
    a.extend([0])
    clock.now += 4
    assert a.take() is None


def test_given_up_lease_passes_on_at_once(boards: tuple[LeaseBoard, LeaseBoard]) -> None:
    """A replica that stops in order leaves nothing to wait for."""
    a, b = boards
    assert a.take() == 0
    assert b.take() == 1
    a.give_up([0, 1])
    fresh = LeaseBoard(b._store, "h", 2, "c", lease_s=10, clock=b._clock)
    assert (fresh.take(), fresh.take()) == (0, None)


def test_lease_is_done_once(boards: tuple[LeaseBoard, LeaseBoard], clock: Clock) -> None:
    """The first to finish is believed, and nobody takes what is done."""
    a, b = boards
    assert a.take() == 0
    a.finish(0, split="train", num_tokens=5, num_skipped=1)
    b_view = b.refresh()
    assert [(lease.num_tokens, lease.num_skipped) for lease in b_view] == [(5, 1)]
    clock.now += 60
    b.finish(0, split="train", num_tokens=5, num_skipped=1)
    assert a.refresh() == b_view
    assert (b.take(), b.take()) == (1, None)
    assert not b.all_done()
    b.finish(1, split="held_out", num_tokens=2, num_skipped=0)
    assert b.all_done()
    a.refresh()
    assert a.all_done()


def test_leases_are_taken_in_the_order_that_is_given(boards: tuple[LeaseBoard, LeaseBoard]) -> None:
    """Replicas that pass over what others hold keep to one order."""
    a, b = boards
    assert (a.take([1, 0]), b.take([1, 0]), b.take([1, 0])) == (1, 0, None)
