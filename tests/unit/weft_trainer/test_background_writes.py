"""Writes beside the steps: in order, tried again, and never forgotten when they fail."""

import threading

import pytest

from weft_common.errors import FailedPreconditionError, StorageFullError, UnavailableError, WeftError
from weft_trainer.worker import patience
from weft_trainer.worker.background import Background
from weft_trainer.worker.patience import patiently


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_FIRST_PAUSE_S", 0.001)


@pytest.mark.parametrize("error", [UnavailableError("the bucket answers 503"), StorageFullError("full")])
def test_what_may_help_is_tried_again(error: WeftError) -> None:
    """A bucket that is away or full for a while delays a write, and no more."""
    left = [error, error, error]

    def work() -> str:
        if left:
            raise left.pop()
        return "done"

    assert patiently(work, "a write", 10.0) == "done"


def test_patience_ends() -> None:
    """After its bound the last error is told; what no retry helps is told at once."""

    def away() -> None:
        raise UnavailableError("still away")

    with pytest.raises(UnavailableError, match="still away"):
        patiently(away, "a write", 0.02)
    calls = []

    def refused() -> None:
        calls.append(1)
        raise FailedPreconditionError("another attempt")

    with pytest.raises(FailedPreconditionError):
        patiently(refused, "a write", 10.0)
    assert calls == [1]


def test_work_is_done_in_order_while_others_go_on() -> None:
    """Nothing waits for the thread, and the second piece waits for the first."""
    background, gate, done = Background(1.0), threading.Event(), []
    background.submit("first", lambda: (gate.wait(10), done.append(1)))
    second = background.submit("second", lambda: done.append(2))
    assert not second.done()
    gate.set()
    background.drain()
    assert done == [1, 2]


def test_failure_is_raised_by_whoever_looks() -> None:
    """A write that failed for good is told at the next step and at the end, though later ones went well."""
    background = Background(0.0)

    def away() -> None:
        raise UnavailableError("away")

    background.submit("first", away)
    with pytest.raises(UnavailableError):
        background.drain()
    with pytest.raises(UnavailableError):
        background.check()
