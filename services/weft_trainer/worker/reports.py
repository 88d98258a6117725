"""
What a rank tells its controller, and what it is told.

A thread of its own sends; while nobody answers, reports are kept and sent again, and training goes on.
"""

from __future__ import annotations

import resource
import threading
import time
from dataclasses import asdict

import grpc

from weft.training.v1 import messages_pb2, service_pb2, service_pb2_grpc
from weft_clt.metrics import Evaluation, StepMetrics
from weft_common.errors import Code
from weft_common.logging import get_logger

__all__ = ["CONTINUE", "SAVE_AND_STOP", "STOP", "Reporter", "peak_memory_bytes"]

CONTINUE, SAVE_AND_STOP, STOP = 0, 1, 2
"""Directives in rising order of urgency: the largest of all ranks counts."""

_DIRECTIVES = {
    service_pb2.DIRECTIVE_CONTINUE: CONTINUE,
    service_pb2.DIRECTIVE_SAVE_AND_STOP: SAVE_AND_STOP,
    service_pb2.DIRECTIVE_STOP: STOP,
}
_MOST_METRICS = 256
_REFUSED = {Code.FAILED_PRECONDITION, Code.NOT_FOUND}

_log = get_logger(__name__)


def peak_memory_bytes() -> int:
    """Return the largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Reporter:
    """
    Sends one rank's reports.

    Args:
        stub: None sends nothing: everything is kept by nobody and the directive stays CONTINUE.
        interval_s: Between two reports where nothing is new.
    """

    def __init__(
        self,
        stub: service_pb2_grpc.RunReportServiceStub | None,
        *,
        run: str,
        attempt: int,
        rank: int,
        interval_s: float = 2.0,
        timeout_s: float = 10.0,
    ) -> None:
        self._stub, self._interval_s, self._timeout_s = stub, interval_s, timeout_s
        self._base = service_pb2.ReportRequest(run=f"runs/{run}", attempt=attempt, rank=rank)
        self._waiting: list[service_pb2.ReportRequest] = []
        self._metrics: list[messages_pb2.Metrics] = []
        self._wake = threading.Condition()
        self._closing = False
        self.directive = CONTINUE
        self._thread = threading.Thread(target=self._run, name="reports", daemon=True)
        if stub is not None:
            self._thread.start()

    def step(self, metrics: StepMetrics) -> None:
        """Tell a step's metrics."""
        if self._stub is not None:
            with self._wake:
                self._metrics.append(messages_pb2.Metrics(**asdict(metrics)))
                self._wake.notify()

    def evaluation(self, evaluation: Evaluation) -> None:
        """Tell an evaluation."""
        self._tell(evaluation=messages_pb2.Evaluation(**asdict(evaluation)))

    def checkpoint(self, step: int) -> None:
        """Tell that a checkpoint is complete."""
        self._tell(checkpoint_step=step)

    def damaged_checkpoint(self, step: int, reason: str, resumed_step: int) -> None:
        """Tell that a checkpoint is damaged, why, and which older one the run goes on from."""
        damaged = service_pb2.DamagedCheckpoint(step=step, reason=reason, resumed_step=resumed_step)
        self._tell(damaged_checkpoint=damaged)

    def finished(self) -> None:
        """Tell that all is done and saved."""
        self._tell(finished=True)

    def failed(self, message: str) -> None:
        """Tell why this rank gives up."""
        self._tell(error_message=message)

    def close(self, wait_s: float) -> bool:
        """Stop; return whether everything was told within `wait_s`."""
        if self._stub is None:
            return True
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(wait_s)
        return not self._thread.is_alive()

    def _tell(self, **fields: object) -> None:
        if self._stub is None:
            return
        with self._wake:
            # What happened before comes before, in reports that stay small however long nobody has answered.
            while self._metrics:
                self._waiting.append(self._take_metrics())
            self._waiting.append(service_pb2.ReportRequest(**fields))  # type: ignore[arg-type]
            self._wake.notify()

    def _next(self) -> service_pb2.ReportRequest | None:
        """Wait for news, or for the time to show a sign of life; None once closed and empty."""
        with self._wake:
            if not (self._waiting or self._metrics or self._closing):
                self._wake.wait(self._interval_s)
            if self._waiting:
                return self._waiting[0]
            if self._metrics:
                self._waiting.append(self._take_metrics())
                return self._waiting[0]
            return None if self._closing else service_pb2.ReportRequest()

    def _take_metrics(self) -> service_pb2.ReportRequest:
        report = service_pb2.ReportRequest(metrics=self._metrics[:_MOST_METRICS])
        del self._metrics[:_MOST_METRICS]
        return report

    def _run(self) -> None:
        assert self._stub is not None
        pause_s = 0.2
        while (report := self._next()) is not None:
            report.MergeFrom(self._base)
            report.peak_memory_bytes = peak_memory_bytes()
            try:
                answer = self._stub.Report(report, timeout=self._timeout_s)
            except grpc.RpcError as error:
                code = Code(error.code().value[0])
                if code in _REFUSED:
                    _log.warning("report_refused", code=code.name, details=error.details())
                    self.directive = STOP
                    return
                _log.warning("report_failed", code=code.name, retry_in_s=pause_s)
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, 3.0)
                continue
            pause_s = 0.2
            with self._wake:
                if self._waiting and self._waiting[0] is report:
                    self._waiting.pop(0)
            self.directive = max(self.directive, _DIRECTIVES.get(answer.directive, CONTINUE))
