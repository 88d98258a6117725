"""Who keeps the others waiting."""

import time
from dataclasses import dataclass, field
from datetime import timedelta

import pytest

from weft_clt.mesh import Progress
from weft_trainer.worker.watchdog import Watchdog, verdict


@dataclass
class FakeNotes:
    """Notes in a dictionary; `gone` is a rank 0 that answers nobody."""

    notes: dict[str, bytes] = field(default_factory=dict)
    gone: bool = False

    def set(self, key: str, value: str, /) -> None:
        if self.gone:
            raise RuntimeError("connection reset")
        self.notes[key] = value.encode()

    def get(self, key: str, /) -> bytes:
        if key not in self.notes:
            raise RuntimeError("timed out")
        return self.notes[key]

    def set_timeout(self, timeout: timedelta, /) -> None:
        assert timeout.total_seconds() >= 1


def _watchdog(notes: FakeNotes, progress: Progress, rank: int = 0) -> Watchdog:
    return Watchdog(notes, progress, rank=rank, world_size=3, bound_s=60.0, give_up=lambda message: None)


def _waiting(entered: int, seconds: float) -> Progress:
    return Progress(entered, time.monotonic() - seconds)


def test_rank_that_has_not_come_is_named() -> None:
    """It has entered fewer exchanges than the rank that waits."""
    notes = FakeNotes()
    assert not _watchdog(notes, Progress(6), rank=1).look()
    assert not _watchdog(notes, _waiting(7, 59), rank=2).look()
    assert _watchdog(notes, _waiting(7, 61)).look().startswith("rank 1 has not come to what rank 0 has been waiting in")


def test_rank_that_never_noted_anything_is_named() -> None:
    """It hung, or died, before its first note."""
    notes = FakeNotes()
    _watchdog(notes, Progress(7), rank=1).look()
    assert "rank 2 has not come" in _watchdog(notes, _waiting(7, 61)).look()


def test_long_work_outside_of_exchanges_is_no_hang() -> None:
    """Only a rank in an exchange waits for others."""
    assert not _watchdog(FakeNotes(), Progress(3)).look()


def test_notes_that_are_gone_accuse_rank_0_only_of_a_real_wait() -> None:
    """Where rank 0's process keeps them, it may just have ended first."""
    assert not _watchdog(FakeNotes(gone=True), _waiting(7, 5), rank=1).look()
    assert "rank 0 has not come" in _watchdog(FakeNotes(gone=True), _waiting(7, 61), rank=1).look()


def test_rank_that_waits_for_the_one_that_hangs_is_not_accused() -> None:
    """Rank 1 hangs, rank 0 waits for it, and rank 2, which went on over the other axis, waits for both."""
    assert verdict([5, 4, 8], 2, 70.0).startswith("rank 1 has not come")


def test_all_waiting_means_the_network() -> None:
    """Where everybody has come, nobody is accused."""
    assert "network" in verdict([4, 4, 5], 1, 70.0)


def test_progress_counts_what_is_entered_and_left() -> None:
    """An exchange that fails is left too."""
    progress, seen = Progress(), []

    def fail() -> None:
        with progress.inside():
            seen.append(progress.inside_since_s)
            raise RuntimeError("connection closed by peer")

    with pytest.raises(RuntimeError):
        fail()
    assert seen[0] is not None
    assert (progress.entered, progress.inside_since_s) == (1, None)
