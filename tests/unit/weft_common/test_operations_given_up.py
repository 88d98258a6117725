"""What a kind of work is told when nobody will go on with it: always, and before anybody can read that it ended."""

import asyncio

import pytest
from google.protobuf.message import Message

from weft.activations.v1 import messages_pb2
from weft.common.v1 import operation_pb2
from weft_common.errors import CancelledError, FailedPreconditionError, UnavailableError, WeftError
from weft_common.operation_store import MemoryOperationStore, read_record
from weft_common.operations import OperationContext, OperationKind, OperationManager, RetryPolicy
from weft_common.status import error_from_status

NAME = "operations/test-h1"


class Work:
    """Work that never succeeds, and what it was told of its end."""

    def __init__(self, *, fails: WeftError | None, hears: str = "") -> None:
        self.store = MemoryOperationStore()
        self._fails, self._hears = fails, hears
        self.begun, self.told_first = asyncio.Event(), asyncio.Event()
        self.told: list[tuple[str, str, bool]] = []

    def manager(self, retry: RetryPolicy) -> OperationManager:
        """Return one that does this work."""
        kinds = {"work": OperationKind(self._do, given_up=self._given_up)}
        return OperationManager("test", self.store, kinds, lease_s=0.4, poll_s=0.02, retry=retry)

    async def _do(self, context: OperationContext) -> Message:
        self.begun.set()
        if self._fails is not None:
            raise self._fails
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async def _given_up(self, context: OperationContext, error: WeftError) -> None:
        self.told.append((context.operation_id, error.message, read_record(self.store, NAME)[0].done))
        if len(self.told) > 1:
            return
        self.told_first.set()
        if self._hears == "not yet":
            raise UnavailableError("the bucket is away")
        if self._hears == "slowly":
            await asyncio.Event().wait()


async def _start(owner: OperationManager) -> None:
    request = messages_pb2.HarvestMetadata(harvest="harvests/h1")
    await owner.start("work", "h1", request, operation_pb2.Progress(stage="working", completed=0, total=10))


async def _error(owner: OperationManager) -> WeftError:
    operation = await owner.wait(NAME, 10)
    assert operation.WhichOneof("result") == "error"
    return error_from_status(operation.error)


async def test_kind_knows_of_work_that_failed_for_good_before_it_is_written_down() -> None:
    """After the last try, once; where it cannot be told yet, the work stays unfinished and is given up again."""
    work = Work(fails=UnavailableError("a peer is away"), hears="not yet")
    owner = work.manager(RetryPolicy(base_s=0.01, cap_s=0.02, max_failures=3))
    async with owner.run():
        await _start(owner)
        assert (await _error(owner)).message == "a peer is away"
    assert work.told == [("h1", "a peer is away", False)] * 2


async def test_kind_knows_of_work_that_nobody_came_to_the_end_of() -> None:
    """Whoever finds that it was taken up too often, and has not begun it, tells the kind too."""
    work = Work(fails=None)
    owner = work.manager(RetryPolicy(max_claims=0))
    async with owner.run():
        await _start(owner)
        said = (await _error(owner)).message
    assert work.told == [("h1", said, False)]
    assert not work.begun.is_set()


@pytest.mark.parametrize("when", ["before anybody does it", "at work", "between two tries", "while it is given up"])
async def test_kind_knows_of_work_that_was_cancelled(when: str) -> None:
    """Whatever its manager does at that moment, the last word is that it was cancelled."""
    fails = {
        "between two tries": UnavailableError("a peer is away"),
        "while it is given up": FailedPreconditionError("nothing to be done"),
    }.get(when)
    work = Work(fails=fails, hears="slowly" if when == "while it is given up" else "")
    owner = work.manager(RetryPolicy(base_s=60.0, cap_s=60.0))
    await _start(owner)
    if when == "before anybody does it":
        await owner.cancel(NAME)
    async with owner.run(), asyncio.timeout(10):
        if when != "before anybody does it":
            await (work.told_first if when == "while it is given up" else work.begun).wait()
            await owner.cancel(NAME)
        error = await _error(owner)
    assert isinstance(error, CancelledError)
    assert work.told[-1] == ("h1", error.message, False)
    assert len(work.told) == 1 + (when == "while it is given up")
