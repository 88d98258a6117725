"""Writes beside the steps: in order, tried again, and never forgotten when they fail."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from torch import Tensor

from weft_clt.mesh import Mesh, SingleAxis
from weft_common.errors import FailedPreconditionError, StorageFullError, UnavailableError, WeftError
from weft_trainer.worker import background as background_module
from weft_trainer.worker import patience
from weft_trainer.worker.background import Background, together
from weft_trainer.worker.patience import patiently

ALONE = Mesh(SingleAxis(), SingleAxis())


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


def test_patience_ends_at_once_where_nobody_waits_any_more() -> None:
    """A read that sleeps until its next try fails when its reader is closed, so that its thread can end."""
    ended, tried = threading.Event(), threading.Event()

    def away() -> None:
        tried.set()
        raise UnavailableError("still away")

    with ThreadPoolExecutor(1) as threads:
        read = threads.submit(patiently, away, "a read", 3600.0, ended)
        assert tried.wait(60)
        ended.set()
        with pytest.raises(UnavailableError, match="still away"):
            read.result(60)


def test_work_is_done_in_order_while_others_go_on() -> None:
    """Nothing waits for the thread, and the second piece waits for the first."""
    background, gate, done = Background(1.0), threading.Event(), []
    background.submit("first", lambda: (gate.wait(60), done.append(1)))
    second = background.submit("second", lambda: done.append(2))
    assert not second.done()
    gate.set()
    background.drain(ALONE)
    assert done == [1, 2]


def test_failure_is_raised_by_whoever_looks() -> None:
    """A write that failed for good is told at the next step and at the end, though later ones went well."""
    background = Background(0.0)

    def away() -> None:
        raise UnavailableError("away")

    background.submit("first", away)
    with pytest.raises(UnavailableError):
        background.drain(ALONE)
    with pytest.raises(UnavailableError):
        background.check()


class OtherRank(SingleAxis):
    """A second rank that needs some meetings more."""

    def __init__(self, meetings: int) -> None:
        super().__init__()
        self.left = meetings

    def max_(self, tensor: Tensor) -> Tensor:
        self.left -= 1
        return tensor.clamp(min=int(self.left > 0))


def test_ranks_meet_until_work_is_done_on_all() -> None:
    """Whoever is done first comes to every meeting of the others, and raises its own failure only then."""
    other = OtherRank(3)
    failed: Future[None] = Future()
    failed.set_exception(UnavailableError("away"))
    with pytest.raises(UnavailableError):
        together(Mesh(SingleAxis(), other), failed)
    assert other.left == 0


def test_rank_meets_the_others_while_its_own_work_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not keep them waiting until it is done."""
    monkeypatch.setattr(background_module, "_MEET_S", 0.001)
    other, work = OtherRank(0), Future[str]()
    finish = threading.Thread(target=lambda: (_until(lambda: other.left < -5), work.set_result("done")))
    finish.start()
    assert together(Mesh(SingleAxis(), other), work) == "done"
    finish.join(60)
    assert other.left < -5


def test_end_of_all_writes_is_met_by_every_rank() -> None:
    """A rank that has nothing to write comes to the meetings of one whose bucket is away, which is late, not hung."""
    other = OtherRank(3)
    Background(1.0).drain(Mesh(SingleAxis(), other))
    assert other.left == 0


def _until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not reached() and time.monotonic() < deadline:
        time.sleep(0.001)
