"""
One vLLM engine on a thread of its own: prompts go in from any thread, and come out captured whole or refused.

Requests of all callers share its passes. A capture is whole when every hook saw every position of the prompt once, in
order; anything else is an error, never a result with holes.

Legend: P positions.
"""

import itertools
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from weft_activations.adapters.vllm_messages import to_plain
from weft_activations.core.ports import Intervention
from weft_common.errors import InternalError, InvalidArgumentError, UnavailableError
from weft_common.logging import get_logger

__all__ = ["CaptureRequest", "Scheduler", "VllmEngine"]

_LOG = get_logger(__name__)
Floats = npt.NDArray[np.float32]


@dataclass(eq=False)
class CaptureRequest:
    """
    A prompt to run.

    Attributes:
        token_ids: The prompt.
        sinks: By hook, where rows are written: [P - skipped, ...], logits [V].
        skipped: First positions that are not kept.
        interventions: What is changed on the way.
        done: Is set once `sinks` are written, or holds the error; cancelled once nothing is written any more.
    """

    token_ids: Sequence[int]
    sinks: Mapping[str, Floats]
    skipped: int = 0
    interventions: Sequence[Intervention] = ()
    done: Future[None] = field(default_factory=Future)


class Scheduler(Protocol):
    """What is used of vLLM's `LLMEngine`, from one thread."""

    def add(self, name: str, token_ids: list[int]) -> str:
        """Take a prompt, and return the id that workers know it by; ValueError where it is refused."""
        ...

    def step(self) -> list[str]:
        """Run one pass and return the names of the prompts that it ended."""
        ...

    def abort(self, worker_id: str) -> None:
        """Drop a prompt."""
        ...

    def on_workers(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of `vllm_worker.CaptureWorker` on every rank."""
        ...

    def shutdown(self) -> None:
        """Let go of the model."""
        ...


@dataclass(frozen=True)
class _Running:
    request: CaptureRequest
    worker_id: str


class VllmEngine:
    """
    An engine; `submit` and `cancel` may come from any thread.

    Args:
        open_scheduler: Loads the model; called on the engine's thread.
        in_process: Whether the one worker is in this process, so that it can write into `sinks` by itself.

    Raises:
        Exception: What `open_scheduler` raises.
    """

    def __init__(self, open_scheduler: Callable[[], Scheduler], *, in_process: bool) -> None:
        self._in_process = in_process
        self._inbox: queue.SimpleQueue[tuple[str, CaptureRequest | None]] = queue.SimpleQueue()
        self._running: dict[str, _Running] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._closed = False
        started: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(open_scheduler, started), name="vllm-engine", daemon=True
        )
        self._thread.start()
        started.result()

    @property
    def is_alive(self) -> bool:
        """Whether it still takes requests."""
        return not self._closed

    @property
    def num_running(self) -> int:
        """How many requests it holds."""
        return len(self._running)

    def submit(self, request: CaptureRequest) -> None:
        """
        Take a request; its `done` tells the end.

        Raises:
            UnavailableError: The engine has stopped.
        """
        with self._lock:
            if self._closed:
                raise UnavailableError("the engine has stopped; send the call again", retry_after_s=1.0)
            self._inbox.put(("run", request))

    def cancel(self, request: CaptureRequest) -> None:
        """Drop a request before the next pass, wherever it is; its `done` is cancelled then."""
        self._inbox.put(("cancel", request))

    def close(self) -> None:
        """Drop what runs and let go of the model."""
        self._inbox.put(("close", None))
        self._thread.join()

    def _run(self, open_scheduler: Callable[[], Scheduler], started: "Future[None]") -> None:
        try:
            scheduler = open_scheduler()
        except BaseException as error:
            self._closed = True
            started.set_exception(error)
            return
        started.set_result(None)
        why = "it was told to stop"
        try:
            while self._take(scheduler):
                for name in scheduler.step():
                    self._finish(scheduler, name)
        except Exception as error:
            why = f"{type(error).__name__}: {_one_line(error)}"
            _LOG.exception("vLLM failed")
        with self._lock:
            self._closed = True
        failure = UnavailableError(
            f"the engine stopped before the prompt was through ({why}); send the call again", retry_after_s=1.0
        )
        left = [running.request for running in self._running.values()]
        while not self._inbox.empty():
            _, request = self._inbox.get()
            left += [request] if request is not None else []
        self._running.clear()
        for request in left:
            if not request.done.done():
                request.done.set_exception(failure)
        try:
            scheduler.shutdown()
        except Exception:
            _LOG.exception("vLLM did not shut down")

    def _take(self, scheduler: Scheduler) -> bool:
        """Take what has come in, and wait where nothing runs; false once it is time to stop."""
        while True:
            try:
                what, request = self._inbox.get(block=not self._running)
            except queue.Empty:
                return True
            if request is None:
                return False
            if what == "run":
                self._begin(scheduler, request)
            else:
                self._drop(scheduler, request)

    def _begin(self, scheduler: Scheduler, request: CaptureRequest) -> None:
        if request.done.done():
            return
        name = str(next(self._numbers))
        token_ids = [int(token_id) for token_id in request.token_ids]
        try:
            worker_id = scheduler.add(name, token_ids)
        except ValueError as error:
            request.done.set_exception(InvalidArgumentError(f"vLLM refuses the prompt: {_one_line(error)}"))
            return
        self._running[name] = _Running(request, worker_id)
        shapes = {hook: sink.shape for hook, sink in request.sinks.items()}
        sinks = {hook: torch.from_numpy(sink) for hook, sink in request.sinks.items()} if self._in_process else None
        changes = [to_plain(change) for change in request.interventions]
        scheduler.on_workers("begin_capture", worker_id, token_ids, shapes, request.skipped, changes, sinks)

    def _drop(self, scheduler: Scheduler, request: CaptureRequest) -> None:
        for name, running in self._running.items():
            if running.request is request:
                del self._running[name]
                scheduler.abort(running.worker_id)
                scheduler.on_workers("end_capture", running.worker_id, False)
                break
        request.done.cancel()

    def _finish(self, scheduler: Scheduler, name: str) -> None:
        running = self._running.pop(name)
        request = running.request
        ended = scheduler.on_workers("end_capture", running.worker_id, not self._in_process)
        problem = next((problem for problem, _ in ended if problem), "")
        if not problem and not self._in_process:
            rows = ended[0][1]
            for hook, sink in request.sinks.items():
                sink[...] = np.frombuffer(rows[hook], np.float32).reshape(sink.shape)
        if problem:
            request.done.set_exception(
                InternalError(f"the capture is not whole and is not given out: {problem}; send the call again")
            )
        else:
            request.done.set_result(None)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
