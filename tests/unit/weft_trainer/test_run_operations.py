"""What becomes of a run whose operation has failed for good, or was cancelled."""

from typing import Any

from fake_ranks import Controller
from google.protobuf.message import Message

from weft.training.v1 import messages_pb2, service_pb2
from weft_common.errors import CancelledError, UnavailableError
from weft_common.operation_kinds import OperationContext, packed_any
from weft_common.operation_store import Record
from weft_trainer.core.commands import operation_id
from weft_trainer.core.records import RunState
from weft_trainer.operations import TRAIN, Handlers


def _handlers(controller: Controller) -> Handlers:
    formats: Any = None  # none of its work is done here
    return Handlers(controller.runs, controller.supervisor, controller.jobs, formats, controller.catalog)


def _context(count: int, run: str = "r") -> OperationContext:
    async def report(name: str, metadata: Message) -> None: ...

    record = Record(
        kind=TRAIN,
        request=packed_any(service_pb2.GetRunRequest(name=f"runs/{run}")),
        metadata=packed_any(messages_pb2.RunMetadata()),
        create_s=0.0,
        update_s=0.0,
    )
    name = operation_id(run, count)
    return OperationContext(f"operations/trainer-{name}", name, record, report)


async def test_run_ends_as_failed_with_the_last_try() -> None:
    """It does not stay pending for ever, with nobody who would try again; what was wrong is in its record."""
    controller = Controller()
    await controller.create()
    handlers, away = _handlers(controller), UnavailableError("the cache does not answer")
    await handlers.give_up(_context(0), away)
    record = await controller.runs.get("r")
    assert (record.state, record.error_message) == (RunState.FAILED, "the cache does not answer")
    await controller.commands.resume("r")
    await handlers.give_up(_context(0), away)
    assert (await controller.runs.get("r")).state is RunState.PENDING
    await handlers.give_up(_context(1), away)
    assert (await controller.runs.get("r")).state is RunState.FAILED


async def test_run_whose_operation_was_cancelled_is_cancelled() -> None:
    """Whoever supervised it then, or nobody; its ranks are cleared away, and a run that has ended stays as it is."""
    controller = Controller()
    await controller.create()
    await controller.supervisor._open_attempt("r")
    group = await controller.ranks(1)
    handlers, cancelled = _handlers(controller), CancelledError("it was cancelled, as was asked")
    await handlers.give_up(_context(0), cancelled)
    record = await controller.runs.get("r")
    assert (record.state, record.attempt_open, record.error_message) == (RunState.CANCELLED, False, "")
    assert record.transitions[-1].reason == "its operation was cancelled"
    assert not group.runs
    await handlers.give_up(_context(0), UnavailableError("away"))
    assert await controller.runs.get("r") == record


async def test_operation_of_a_run_that_is_gone_can_end() -> None:
    """There is nothing to be ended with it."""
    await _handlers(Controller()).give_up(_context(0, "gone"), UnavailableError("away"))


async def test_evaluation_holds_the_dataset_of_its_run_until_its_operation_ends() -> None:
    """The run's own hold may be over; where the dataset is gone, nothing is started."""
    controller = Controller()
    await controller.create()
    request = service_pb2.EvaluateCheckpointRequest(checkpoint="runs/r/checkpoints/10")
    held: list[tuple[str, str]] = []

    async def evaluate(*arguments: object) -> dict[str, Any]:
        held.extend(controller.catalog.holds)
        return {}

    controller.jobs.evaluate = evaluate  # type: ignore[method-assign]
    context = _context(0)
    context.request = request
    await _handlers(controller).evaluate(context)
    assert held == [("datasets/d", context.name)]
