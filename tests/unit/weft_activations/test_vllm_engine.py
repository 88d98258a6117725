"""The engine's thread, with a scheduler in the place of vLLM's that does what it is told."""

import ast
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError as FutureCancelledError
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from weft_activations.adapters.vllm_engine import CaptureRequest, VllmEngine
from weft_activations.adapters.vllm_messages import from_plain
from weft_activations.core.ports import Intervention, InterventionKind
from weft_common.errors import InternalError, InvalidArgumentError, UnavailableError, WeftError

PATIENCE_S = 60


class FakeScheduler:
    """Ends one prompt a step; what it captures are the token ids. It may be held, and may be told to fail."""

    def __init__(self, *, in_process: bool = True) -> None:
        self.in_process = in_process
        self.gate = threading.Event()
        self.gate.set()
        self.stepping = threading.Event()
        self.begun: dict[str, tuple[Any, ...]] = {}
        self.waiting: dict[str, str] = {}
        self.aborted: list[str] = []
        self.problem = ""
        self.failure: Exception | None = None
        self.is_shut_down = False

    def add(self, name: str, token_ids: list[int]) -> str:
        if len(token_ids) > 8:
            raise ValueError("The decoder prompt is longer than 8")
        self.waiting[name] = f"{name}-0ddba11"
        return self.waiting[name]

    def step(self) -> list[str]:
        self.stepping.set()
        assert self.gate.wait(PATIENCE_S)
        if self.failure is not None:
            raise self.failure
        name, worker_id = next(iter(self.waiting.items()))
        token_ids, shapes, skipped, _, sinks = self.begun[worker_id]
        assert (sinks is not None) == self.in_process
        for hook in shapes if sinks else ():
            sinks[hook][:] = sinks[hook].new_tensor(token_ids[skipped:])[:, None]
        del self.waiting[name]
        return [name]

    def abort(self, worker_id: str) -> None:
        self.aborted.append(worker_id)
        self.waiting = {name: other for name, other in self.waiting.items() if other != worker_id}

    def on_workers(self, method: str, *arguments: Any) -> list[Any]:
        if method == "begin_capture":
            self.begun[arguments[0]] = arguments[1:]
            return [None, None]
        assert method == "end_capture"
        worker_id, with_rows = arguments
        token_ids, shapes, skipped, _, _ = self.begun.pop(worker_id)
        rows = {}
        if with_rows:
            for hook, shape in shapes.items():
                column = np.asarray(token_ids[skipped:], np.float32)[:, None]
                rows[hook] = np.broadcast_to(column, shape).astype(np.float32).tobytes()
        return [(self.problem, rows), ("", {})]

    def shutdown(self) -> None:
        self.is_shut_down = True


Opened = tuple[FakeScheduler, VllmEngine]


@pytest.fixture
def opening() -> Iterator[Callable[..., Opened]]:
    opened: list[Opened] = []

    def open_engine(*, in_process: bool = True) -> Opened:
        scheduler = FakeScheduler(in_process=in_process)
        opened.append((scheduler, VllmEngine(lambda: scheduler, in_process=in_process)))
        return opened[-1]

    yield open_engine
    for scheduler, engine in opened:
        scheduler.gate.set()
        engine.close()


def request(token_ids: list[int], **fields: Any) -> CaptureRequest:
    kept = len(token_ids) - fields.get("skipped", 0)
    return CaptureRequest(token_ids, {"embed": np.full((kept, 2), np.nan, np.float32)}, **fields)


@pytest.mark.parametrize("in_process", [True, False])
def test_prompts_of_many_threads_get_their_own_rows(opening: Callable[..., Opened], in_process: bool) -> None:
    """Each request's rows are its own, written by the worker here or sent over as bytes."""
    _, engine = opening(in_process=in_process)
    requests = [request([number, number + 1, number + 2], skipped=1) for number in range(40)]
    submitters = [
        threading.Thread(target=lambda part=requests[first::4]: [engine.submit(one) for one in part])
        for first in range(4)
    ]
    for submitter in submitters:
        submitter.start()
    for one in requests:
        one.done.result(PATIENCE_S)
        np.testing.assert_array_equal(one.sinks["embed"], np.array(one.token_ids[1:])[:, None] + np.zeros(2))
    for submitter in submitters:
        submitter.join()
    assert engine.num_running == 0


def test_workers_are_told_interventions_in_plain_data(opening: Callable[..., Opened]) -> None:
    """What goes to other processes is text, numbers and bytes."""
    scheduler, engine = opening(in_process=False)
    value = np.arange(6, dtype=np.float32).reshape(2, 3)[:, ::-1]
    change = Intervention(4, "mlp_out", InterventionKind.ADD, (0, 1), value, 0.25, (3,), (5, 2), value[0])
    scheduler.gate.clear()
    one = request([1, 2], interventions=[change])
    engine.submit(one)
    assert scheduler.stepping.wait(PATIENCE_S)
    (told,) = scheduler.begun.values()
    token_ids, shapes, skipped, (said,), sinks = told
    assert (token_ids, shapes, skipped, sinks) == ([1, 2], {"embed": (2, 2)}, 0, None)
    assert ast.literal_eval(repr(said)) == said
    heard = from_plain(said)
    np.testing.assert_array_equal(heard.value, value)
    np.testing.assert_array_equal(heard.direction, value[0])
    assert replace(heard, value=None, direction=None) == replace(change, value=None, direction=None)
    scheduler.gate.set()
    one.done.result(PATIENCE_S)


def test_capture_with_a_hole_is_refused(opening: Callable[..., Opened]) -> None:
    """What a worker misses makes an error that names it, and nothing else fails with it."""
    scheduler, engine = opening()
    scheduler.problem = "mlp_in saw 3 of 4 positions"
    broken = request([1])
    engine.submit(broken)
    with pytest.raises(InternalError, match="mlp_in saw 3 of 4 positions"):
        broken.done.result(PATIENCE_S)
    scheduler.problem = ""
    whole = request([1])
    engine.submit(whole)
    whole.done.result(PATIENCE_S)


def test_prompt_that_vllm_refuses_is_the_callers_fault(opening: Callable[..., Opened]) -> None:
    """Its own words reach the caller."""
    _, engine = opening()
    long = request(list(range(9)))
    engine.submit(long)
    with pytest.raises(InvalidArgumentError, match="longer than 8"):
        long.done.result(PATIENCE_S)


def test_cancelled_requests_are_dropped_wherever_they_are(opening: Callable[..., Opened]) -> None:
    """Running or still to come in, a cancelled request ends before the next pass, and vLLM and workers forget it."""
    scheduler, engine = opening()
    scheduler.gate.clear()
    running, beside, behind = request([1]), request([2]), request([3])
    engine.submit(running)
    assert scheduler.stepping.wait(PATIENCE_S)
    for one in (beside, behind):
        engine.submit(one)
    engine.cancel(behind)
    engine.cancel(running)
    scheduler.gate.set()
    beside.done.result(PATIENCE_S)
    with pytest.raises(FutureCancelledError):
        behind.done.result(PATIENCE_S)
    # The pass that was under way ended it before its cancellation was read.
    running.done.result(PATIENCE_S)
    assert scheduler.aborted == ["2-0ddba11"]
    assert scheduler.begun == {}


def test_engine_that_fails_fails_all_that_it_holds(opening: Callable[..., Opened]) -> None:
    """Every caller is told why and that the call may be sent again; what comes later is refused."""
    scheduler, engine = opening()
    scheduler.gate.clear()
    requests = [request([number]) for number in range(3)]
    for one in requests:
        engine.submit(one)
    scheduler.failure = RuntimeError("out of memory in layer 7")
    scheduler.gate.set()
    for one in requests:
        with pytest.raises(WeftError, match="out of memory in layer 7") as caught:
            one.done.result(PATIENCE_S)
        assert caught.value.retryable
    engine.close()
    assert not engine.is_alive
    assert scheduler.is_shut_down
    with pytest.raises(UnavailableError):
        engine.submit(request([1]))


def test_model_that_cannot_be_opened_says_why() -> None:
    """The error of loading reaches who asked for the engine."""

    def broken() -> FakeScheduler:
        raise ValueError("no such weights")

    with pytest.raises(ValueError, match="no such weights"):
        VllmEngine(broken, in_process=True)
