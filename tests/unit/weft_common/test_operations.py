"""The operations service: what survives a restart, who runs what, and how work ends."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack

import pytest
from google.longrunning import operations_pb2
from google.protobuf.message import Message

from weft.activations.v1 import messages_pb2
from weft.common.v1 import operation_pb2
from weft_common.errors import (
    AlreadyExistsError,
    CancelledError,
    ConflictError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
    WeftError,
)
from weft_common.operation_store import MemoryOperationStore, Record, change_record, read_record
from weft_common.operations import OperationContext, OperationKind, OperationManager, RetryPolicy
from weft_common.status import error_from_status

Handler = Callable[[OperationContext], Awaitable[Message]]
REQUEST = messages_pb2.HarvestMetadata(harvest="harvests/h1")
NAME = "operations/test-h1"
FAST = RetryPolicy(base_s=0.01, cap_s=0.02, max_failures=3)


def progress(completed: int) -> operation_pb2.Progress:
    return operation_pb2.Progress(stage="working", completed=completed, total=10)


def manager(store: object, handler: Handler, *, shared: bool = False, lease_s: float = 0.4) -> OperationManager:
    kinds = {"work": OperationKind(handler, shared)}
    return OperationManager("test", store, kinds, lease_s=lease_s, poll_s=0.02, retry=FAST)  # type: ignore[arg-type]


async def start(owner: OperationManager, operation_id: str = "h1") -> operations_pb2.Operation:
    return await owner.start("work", operation_id, REQUEST, progress(0))


async def done(owner: OperationManager, name: str = NAME) -> operations_pb2.Operation:
    operation = await owner.wait(name, 10)
    assert operation.done
    return operation


async def test_work_is_taken_up_in_the_order_of_coming() -> None:
    """Where one may run at once, the first that came is the first that is done, whatever its name."""
    order: list[str] = []

    async def note(context: OperationContext) -> Message:
        order.append(context.operation_id)
        return REQUEST

    kinds = {"work": OperationKind(note, max_running=1)}
    owner = OperationManager("test", MemoryOperationStore(), kinds, poll_s=0.02, retry=FAST)
    for name in ("zebra", "monkey", "ape"):
        await start(owner, name)
        assert owner.unfinished("work") == len(order) + ["zebra", "monkey", "ape"].index(name) + 1
    async with owner.run():
        for name in ("zebra", "monkey", "ape"):
            await done(owner, f"operations/test-{name}")
        await until(lambda: owner.unfinished("work") == 0)
    assert order == ["zebra", "monkey", "ape"]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 (conditions of several parties)
            await asyncio.sleep(0.005)


def failure(operation: operations_pb2.Operation) -> WeftError:
    assert operation.WhichOneof("result") == "error"
    return error_from_status(operation.error)


async def answer(context: OperationContext) -> Message:
    await context.report(progress(10))
    return context.request


async def forever(context: OperationContext) -> Message:
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


async def crash(owner: OperationManager) -> None:
    """Stop a manager as SIGKILL would: nothing of it runs on, and nothing is let go of in the store."""
    runs = list(owner._worker.runs.values())
    owner._worker.runs.clear()
    for run in runs:
        run.task.cancel()
    await asyncio.gather(*(run.task for run in runs), return_exceptions=True)


@pytest.fixture
def store() -> MemoryOperationStore:
    return MemoryOperationStore()


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as opened:
        yield opened


async def test_operation_ends_with_response_and_last_metadata(store: MemoryOperationStore) -> None:
    """What a handler returns and last reported is what the operation holds at its end."""
    owner = manager(store, answer)
    async with owner.run():
        begun = await start(owner)
        ended = await done(owner)
    assert (begun.name, begun.done) == (NAME, False)
    response, metadata = messages_pb2.HarvestMetadata(), operation_pb2.Progress()
    assert ended.response.Unpack(response)
    assert ended.metadata.Unpack(metadata)
    assert response == REQUEST
    assert metadata == progress(10)


async def test_start_is_idempotent_by_id(store: MemoryOperationStore) -> None:
    """The same request under the same id runs once; another request under it is refused."""
    runs = []

    async def count(context: OperationContext) -> Message:
        runs.append(context.operation_id)
        return context.request

    owner = manager(store, count)
    async with owner.run():
        await asyncio.gather(*(start(owner) for _ in range(5)))
        await done(owner)
        again = await start(owner)
        with pytest.raises(AlreadyExistsError, match="id of its own"):
            await owner.start("work", "h1", messages_pb2.HarvestMetadata(harvest="harvests/other"), progress(0))
    assert again.done
    assert runs == ["h1"]


async def test_start_refuses_bad_id(store: MemoryOperationStore) -> None:
    """An id that could leave its folder never reaches the store."""
    with pytest.raises(InvalidArgumentError, match="operation_id"):
        await start(manager(store, answer), "../x")


async def test_unfinished_work_is_done_by_the_next_manager_after_a_stop(store: MemoryOperationStore) -> None:
    """A manager that stops in order lets go at once: the next does not wait for the lease."""
    first = manager(store, forever, lease_s=1000)
    async with first.run():
        await start(first)
        await until(lambda: bool(first._worker.runs))
    second = manager(store, answer, lease_s=1000)
    async with second.run():
        assert (await done(second)).HasField("response")


async def test_killed_managers_work_is_finished_by_a_second(store: MemoryOperationStore) -> None:
    """The second waits until the first has not beaten for a lease, then resumes from what was reported."""
    resumed_from = []

    async def half(context: OperationContext) -> Message:
        await context.report(progress(5))
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async def rest(context: OperationContext) -> Message:
        resumed_from.append(context.metadata)
        return context.request

    first, second = manager(store, half), manager(store, rest)
    looking = asyncio.create_task(first._worker._look_forever())
    await start(first)
    await until(lambda: b'"beat": 1' in store.get(NAME)[0] and progress(5).SerializeToString() in _metadata(store))
    looking.cancel()
    await crash(first)
    before = asyncio.get_running_loop().time()
    async with second.run():
        await done(second)
    assert asyncio.get_running_loop().time() - before >= 0.4
    assert resumed_from == [progress(5)]


def _metadata(store: MemoryOperationStore) -> bytes:
    return Record.decode(NAME, store.get(NAME)[0]).metadata


async def test_beating_manager_keeps_its_work(store: MemoryOperationStore, stack: AsyncExitStack) -> None:
    """Work that takes many leases is run once while its manager lives."""
    runs = []

    async def slow(context: OperationContext) -> Message:
        runs.append(context.name)
        await asyncio.sleep(3)
        return context.request

    managers = [manager(store, slow, lease_s=1) for _ in range(3)]
    for each in managers:
        await stack.enter_async_context(each.run())
    await start(managers[0])
    for each in managers:
        await done(each)
    assert runs == [NAME]


async def test_beats_do_not_wait_behind_other_work_of_the_loops_threads(store: MemoryOperationStore) -> None:
    """While every thread of the loop is held up, the beat goes on."""
    freed, holding = threading.Event(), threading.Event()

    async def endless(context: OperationContext) -> Message:
        await asyncio.Event().wait()
        return context.request

    owner, pool = manager(store, endless, lease_s=1), ThreadPoolExecutor(1)
    asyncio.get_running_loop().set_default_executor(pool)
    async with owner.run():
        await start(owner)
        await until(lambda: read_record(store, NAME)[0].beat > 0)

        def hold() -> None:
            holding.set()
            freed.wait(20)

        held = asyncio.ensure_future(asyncio.to_thread(hold))
        try:
            await until(holding.is_set)
            beat = read_record(store, NAME)[0].beat
            await until(lambda: read_record(store, NAME)[0].beat > beat + 2)
        finally:
            freed.set()
        await held


async def test_work_that_ends_slowly_is_not_taken_up_meanwhile(store: MemoryOperationStore) -> None:
    """A manager that stops beats on while its work comes to an end, however long; then another goes on."""
    at_once, most, runs, ended = 0, 0, 0, asyncio.Event()

    async def slow_to_end(context: OperationContext) -> Message:
        nonlocal at_once, most, runs
        at_once, runs = at_once + 1, runs + 1
        most = max(most, at_once)
        try:
            if runs > 1:
                return context.request
            await asyncio.Event().wait()
        finally:
            if runs == 1:
                # Three leases: an answer that is paid for is waited for.
                await asyncio.sleep(3)
                ended.set()
            at_once -= 1
        raise AssertionError("unreachable")

    first, second = (manager(store, slow_to_end, lease_s=1) for _ in range(2))
    async with AsyncExitStack() as outer, AsyncExitStack() as inner:
        await inner.enter_async_context(first.run())
        await start(first)
        await until(lambda: runs == 1)
        await outer.enter_async_context(second.run())
        await inner.aclose()
        assert ended.is_set()
        await done(second)
    assert (most, runs) == (1, 2)


async def test_manager_that_cannot_beat_stops_its_work(store: MemoryOperationStore) -> None:
    """Who cannot renew its claim for a lease stops by itself, before another's run and its own overlap for long."""
    stopped = asyncio.Event()

    class Failing:
        broken = False

        def __getattr__(self, name: str) -> object:
            if Failing.broken:
                raise UnavailableError("the bucket is away")
            return getattr(store, name)

    async def watch(context: OperationContext) -> Message:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        raise AssertionError("unreachable")

    owner = manager(Failing(), watch, lease_s=0.5)
    async with owner.run():
        await start(owner)
        await until(lambda: bool(owner._worker.runs))
        Failing.broken = True
        async with asyncio.timeout(5):
            await stopped.wait()


async def test_lost_work_is_stopped_and_its_end_not_written(store: MemoryOperationStore) -> None:
    """A manager whose claim another took neither goes on nor writes over the other's."""
    stubborn = asyncio.Event()

    async def late(context: OperationContext) -> Message:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            stubborn.set()
        return context.request

    owner = manager(store, late)
    async with owner.run():
        await start(owner)
        await until(lambda: bool(owner._worker.runs))
        change_record(store, NAME, lambda record: _owned(record, "somebody else"))
        async with asyncio.timeout(5):
            await stubborn.wait()
        await until(lambda: not owner._worker.runs)
    assert not (await owner.get(NAME)).done
    assert Record.decode(NAME, store.get(NAME)[0]).owner == "somebody else"


def _owned(record: Record, owner: str) -> Record:
    return Record(**{**record.__dict__, "owner": owner, "beat": record.beat + 1})


async def test_shared_work_runs_on_every_manager(store: MemoryOperationStore, stack: AsyncExitStack) -> None:
    """Each replica runs a shared kind, and the first end is everybody's."""
    begun: list[int] = []
    stopped: list[int] = []

    def handler(index: int) -> Handler:
        async def work(context: OperationContext) -> Message:
            begun.append(index)
            if index == 0:
                await until(lambda: len(begun) == 3)
                return context.request
            try:
                return await forever(context)
            finally:
                stopped.append(index)

        return work

    managers = [manager(store, handler(index), shared=True) for index in range(3)]
    for each in managers:
        await stack.enter_async_context(each.run())
    await start(managers[2])
    await done(managers[1])
    await until(lambda: sorted(stopped) == [1, 2])
    assert sorted(begun) == [0, 1, 2]


async def test_shared_work_that_is_asked_for_anew_is_not_ended_by_what_was_before(
    store: MemoryOperationStore, stack: AsyncExitStack
) -> None:
    """A replica that is slow to stop cancelled work does not cancel the work that has its name since."""
    may_stop, begun = asyncio.Event(), list[str]()

    def handler(name: str) -> Handler:
        async def work(context: OperationContext) -> Message:
            begun.append(name)
            try:
                return await forever(context)
            finally:
                if begun.count(name) == 1:
                    # Both are asked to stop before either has.
                    await until(lambda: slow._worker.runs[NAME].end is not None)
                    if name == "slow":
                        await may_stop.wait()

        return work

    slow, quick = (manager(store, handler(name), shared=True) for name in ("slow", "quick"))
    for each in (slow, quick):
        await stack.enter_async_context(each.run())
    await start(quick)
    await until(lambda: sorted(begun) == ["quick", "slow"])
    await quick.cancel(NAME)
    assert isinstance(failure(await done(quick)), CancelledError)
    await quick.delete(NAME)
    await start(quick)
    may_stop.set()
    await until(lambda: sorted(begun) == ["quick", "quick", "slow", "slow"])
    assert not (await slow.get(NAME)).done
    await quick.cancel(NAME)
    await done(slow)


async def test_cancel_reaches_another_process(store: MemoryOperationStore, stack: AsyncExitStack) -> None:
    """Cancelling at one replica stops the work at the one that runs it."""
    stopped = asyncio.Event()

    async def work(context: OperationContext) -> Message:
        try:
            return await forever(context)
        finally:
            stopped.set()

    runner, other = manager(store, work), manager(store, work)
    await stack.enter_async_context(runner.run())
    await start(runner)
    await until(lambda: bool(runner._worker.runs))
    await other.cancel(NAME)
    ended = await done(other)
    assert stopped.is_set()
    assert isinstance(failure(ended), CancelledError)


async def test_cancel_before_anybody_runs_it(store: MemoryOperationStore) -> None:
    """Work cancelled while nobody ran it ends without being run."""
    owner = manager(store, answer)
    await start(owner)
    await owner.cancel(NAME)
    async with owner.run():
        assert isinstance(failure(await done(owner)), CancelledError)


async def test_cancel_of_ended_work_changes_nothing(store: MemoryOperationStore) -> None:
    """What is done stays done."""
    owner = manager(store, answer)
    async with owner.run():
        await start(owner)
        ended = await done(owner)
        await owner.cancel(NAME)
        assert await owner.get(NAME) == ended


async def test_retryable_failure_is_tried_again(store: MemoryOperationStore) -> None:
    """A peer that is away for a moment does not fail the work."""
    attempts = []

    async def flaky(context: OperationContext) -> Message:
        attempts.append(1)
        if len(attempts) < 3:
            raise UnavailableError("a peer restarts")
        return context.request

    owner = manager(store, flaky)
    async with owner.run():
        await start(owner)
        assert (await done(owner)).HasField("response")
    assert len(attempts) == 3


async def test_retries_are_bounded_and_the_error_is_kept(store: MemoryOperationStore) -> None:
    """After as many failures as allowed the last error is the operation's."""
    attempts = []

    async def failing(context: OperationContext) -> Message:
        attempts.append(1)
        raise ConflictError(f"lost race {len(attempts)}")

    owner = manager(store, failing)
    async with owner.run():
        await start(owner)
        error = failure(await done(owner))
    assert len(attempts) == FAST.max_failures
    assert isinstance(error, ConflictError)
    assert error.message == "lost race 3"


async def test_lasting_error_is_kept_with_its_details(store: MemoryOperationStore) -> None:
    """An error that no retry helps ends the work at once, with field and metadata."""

    async def wrong(context: OperationContext) -> Message:
        raise InvalidArgumentError("F is 3, not divisible by 2", field="config.num_features", metadata={"F": "3"})

    owner = manager(store, wrong)
    async with owner.run():
        await start(owner)
        error = failure(await done(owner))
    assert isinstance(error, InvalidArgumentError)
    assert (error.field, error.metadata) == ("config.num_features", {"F": "3"})


async def test_unexpected_exception_is_internal_without_its_text(store: MemoryOperationStore) -> None:
    """What a handler did not foresee stays in the log."""

    async def broken(context: OperationContext) -> Message:
        raise RuntimeError("secret path /etc/x")

    owner = manager(store, broken)
    async with owner.run():
        await start(owner)
        error = failure(await done(owner))
    assert error.code.name == "INTERNAL"
    assert "secret" not in error.message


async def test_work_that_kills_its_managers_is_given_up(store: MemoryOperationStore) -> None:
    """Work that was taken up too often and never ended fails instead of killing one more."""
    ran = []

    async def work(context: OperationContext) -> Message:
        ran.append(1)
        return context.request

    owner = manager(store, work)
    await start(owner)
    change_record(store, NAME, lambda record: Record(**{**record.__dict__, "claims": FAST.max_claims}))
    async with owner.run():
        assert "given up" in failure(await done(owner)).message
    assert not ran


async def test_max_running_bounds_a_manager(store: MemoryOperationStore) -> None:
    """No more of a kind than allowed run at once, and all are done in the end."""
    running, most = 0, 0

    async def work(context: OperationContext) -> Message:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.03)
        running -= 1
        return context.request

    owner = OperationManager("test", store, {"work": OperationKind(work, max_running=2)}, poll_s=0.02)
    async with owner.run():
        for index in range(6):
            await start(owner, f"w{index}")
        for index in range(6):
            await done(owner, f"operations/test-w{index}")
    assert most == 2


async def test_list_pages_and_delete_forgets(store: MemoryOperationStore) -> None:
    """Every operation is listed once, and a deleted one is gone; an unfinished one cannot be deleted."""
    owner = manager(store, answer)
    for index in range(5):
        await start(owner, f"w{index}")
    with pytest.raises(FailedPreconditionError, match="cancel it"):
        await owner.delete("operations/test-w0")
    async with owner.run():
        for index in range(5):
            await done(owner, f"operations/test-w{index}")
    first, token = await owner.list(3, "")
    second, end = await owner.list(3, token)
    assert [operation.name for operation in (*first, *second)] == [f"operations/test-w{index}" for index in range(5)]
    assert end == ""
    await owner.delete("operations/test-w0")
    with pytest.raises(NotFoundError):
        await owner.get("operations/test-w0")


async def test_wait_returns_unfinished_work_after_its_timeout(store: MemoryOperationStore) -> None:
    """Waiting is bounded and no error."""
    owner = manager(store, forever)
    async with owner.run():
        await start(owner)
        assert not (await owner.wait(NAME, 0.1)).done


@pytest.mark.parametrize("name", ["operations/other-h1", "", "h1", "operations/test-a/b"])
async def test_names_of_others_are_refused(store: MemoryOperationStore, name: str) -> None:
    """Only names of this service are looked up."""
    with pytest.raises((NotFoundError, InvalidArgumentError)):
        await manager(store, answer).get(name)


async def test_unreadable_record_does_not_stop_the_others(store: MemoryOperationStore) -> None:
    """One broken document fails alone, with DATA_LOSS."""
    store.put("operations/test-broken", b"{not json", etag=None, create=True)
    owner = manager(store, answer)
    async with owner.run():
        await start(owner)
        await done(owner)
        with pytest.raises(DataLossError, match="broken"):
            await owner.get("operations/test-broken")


def test_change_record_keeps_every_writers_change(store: MemoryOperationStore) -> None:
    """Concurrent changes of one record are all applied, none lost."""
    from concurrent.futures import ThreadPoolExecutor

    record = Record(kind="work", request=b"", metadata=b"", create_s=0.0)
    store.put(NAME, record.encode(), etag=None, create=True)

    def bump(_: int) -> None:
        change_record(store, NAME, lambda there: Record(**{**there.__dict__, "beat": there.beat + 1}))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(bump, range(40)))
    assert Record.decode(NAME, store.get(NAME)[0]).beat == 40
