"""What a rank has to tell while its controller is away, over a real channel."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from weft.training.v1 import service_pb2, service_pb2_grpc
from weft_clt.metrics import StepMetrics
from weft_common.client import channel
from weft_trainer.worker.reports import CONTINUE, SAVE_AND_STOP, STOP, Reporter

WAIT_S = 60.0


class Controller(service_pb2_grpc.RunReportServiceServicer):
    """Takes reports on one port for as long as it is up."""

    def __init__(self) -> None:
        self.heard: list[service_pb2.ReportRequest] = []
        self.directive = service_pb2.DIRECTIVE_CONTINUE
        self.refusal: grpc.StatusCode | None = None
        self._server: grpc.Server | None = None
        self._port = 0

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def steps(self) -> list[int]:
        return [metrics.step for report in self.heard for metrics in report.metrics]

    def start(self) -> None:
        self._server = grpc.server(ThreadPoolExecutor(2))
        service_pb2_grpc.add_RunReportServiceServicer_to_server(self, self._server)
        self._port = self._server.add_insecure_port(f"127.0.0.1:{self._port}")
        self._server.start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop(None).wait()
            self._server = None

    def Report(self, request: service_pb2.ReportRequest, context: Any) -> service_pb2.ReportResponse:  # noqa: N802
        if self.refusal is not None:
            context.abort(self.refusal, "another attempt is the present one")
        self.heard.append(request)
        return service_pb2.ReportResponse(directive=self.directive)


@pytest.fixture
def controller() -> Iterator[Controller]:
    controller = Controller()
    controller.start()
    yield controller
    controller.stop()


@pytest.fixture
def reporter(controller: Controller) -> Iterator[Reporter]:
    with channel(controller.target) as connection:
        stub = service_pb2_grpc.RunReportServiceStub(connection)
        reporter = Reporter(stub, run="r", attempt=3, rank=0, interval_s=0.1, timeout_s=2.0)
        yield reporter
        assert reporter.close(WAIT_S)


def _metrics(step: int) -> StepMetrics:
    figures = dict.fromkeys(StepMetrics.__dataclass_fields__, 0.0)
    return StepMetrics(**{**figures, "step": step, "tokens": 10 * step})  # type: ignore[arg-type]


def _wait_for(what: Any) -> None:
    deadline = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_reports_are_kept_while_the_controller_is_away(controller: Controller, reporter: Reporter) -> None:
    """Nothing that a rank tells during an outage is lost, doubled or out of order once the controller is back."""
    reporter.step(_metrics(1))
    _wait_for(lambda: controller.steps == [1])
    controller.stop()
    began = time.monotonic()
    for step in range(2, 400):
        reporter.step(_metrics(step))
    reporter.checkpoint(399)
    reporter.step(_metrics(400))
    reporter.finished()
    assert time.monotonic() - began < 1, "telling must not wait for the controller"
    assert not reporter.close(1.5), "nothing can have been delivered"
    assert reporter.directive == CONTINUE
    controller.directive = service_pb2.DIRECTIVE_SAVE_AND_STOP
    controller.start()
    assert reporter.close(WAIT_S)
    assert controller.steps == list(range(1, 401))
    told = [(report.checkpoint_step, report.finished) for report in controller.heard]
    assert [entry for entry in told if entry != (0, False)] == [(399, False), (0, True)]
    assert {(report.run, report.attempt, report.rank) for report in controller.heard} == {("runs/r", 3, 0)}
    assert max(len(report.metrics) for report in controller.heard) <= 256
    assert reporter.directive == SAVE_AND_STOP


def test_rank_stops_where_its_reports_are_refused(controller: Controller, reporter: Reporter) -> None:
    """A rank of an attempt that is over is told by a refusal, and sends nothing more."""
    controller.refusal = grpc.StatusCode.FAILED_PRECONDITION
    reporter.step(_metrics(1))
    _wait_for(lambda: reporter.directive == STOP)
    controller.refusal = None
    reporter.step(_metrics(2))
    assert reporter.close(WAIT_S)
    assert controller.heard == []


def test_damaged_checkpoint_is_reported_with_its_reason(controller: Controller, reporter: Reporter) -> None:
    """By whichever rank found it, with the step that the run goes on from."""
    reporter.damaged_checkpoint(4, "rank1-of-2.safetensors is gone", 2)
    _wait_for(lambda: any(report.HasField("damaged_checkpoint") for report in controller.heard))
    (found,) = (report for report in controller.heard if report.HasField("damaged_checkpoint"))
    damaged = found.damaged_checkpoint
    assert (found.attempt, damaged.step, damaged.resumed_step) == (3, 4, 2)
    assert damaged.reason == "rank1-of-2.safetensors is gone"
