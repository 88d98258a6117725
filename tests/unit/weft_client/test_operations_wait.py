"""Waiting for long work: progress, errors, and services that are away for a while."""

from collections.abc import Callable
from typing import Any

import pytest
from google.longrunning import operations_pb2
from google.rpc import status_pb2

from weft.common.v1 import operation_pb2
from weft.training.v1 import messages_pb2
from weft_client.aio import calls
from weft_client.aio.operations import AsyncOperations
from weft_client.endpoints import Endpoints
from weft_client.names import operation_service
from weft_common.errors import (
    DataLossError,
    DeadlineExceededError,
    NotFoundError,
    StorageFullError,
    UnavailableError,
    WeftError,
)
from weft_common.status import status_from_error

NAME = "operations/trainer-r1"


def under_way(completed: int) -> operations_pb2.Operation:
    operation = operations_pb2.Operation(name=NAME)
    operation.metadata.Pack(messages_pb2.RunMetadata(progress=operation_pb2.Progress(completed=completed)))
    return operation


def done(result: Any) -> operations_pb2.Operation:
    operation = operations_pb2.Operation(name=NAME, done=True)
    operation.metadata.Pack(messages_pb2.RunMetadata())
    if isinstance(result, status_pb2.Status):
        operation.error.CopyFrom(result)
    else:
        operation.response.Pack(result)
    return operation


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Any]], AsyncOperations]:
    """Operations that answer from a list; a WeftError in it is raised. Time passes by sleeping only."""
    now = [0.0]

    async def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(calls, "monotonic", lambda: now[0])
    monkeypatch.setattr(calls.asyncio, "sleep", sleep)

    def build(answers: list[Any]) -> AsyncOperations:
        operations = AsyncOperations(calls_connection())

        async def get(name: str) -> operations_pb2.Operation:
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            if isinstance(answer, WeftError):
                raise answer
            return answer

        monkeypatch.setattr(operations, "get", get)
        return operations

    return build


def calls_connection() -> Any:
    from weft_client.aio.connection import AsyncConnection

    return AsyncConnection(Endpoints({}))


async def test_wait_reports_every_change_and_gives_the_result(waiting) -> None:
    """Progress is called when the metadata changed; the response comes unpacked."""
    answers = [under_way(1), under_way(1), under_way(2), done(messages_pb2.Run(name="runs/r1"))]
    seen: list[int] = []
    result = await waiting(answers).wait(NAME, progress=lambda metadata: seen.append(metadata.progress.completed))
    assert result == messages_pb2.Run(name="runs/r1")
    assert seen == [1, 2, 0]


async def test_wait_bears_with_a_service_that_starts_again(waiting) -> None:
    """A service that is away for a minute is waited for."""
    answers = [under_way(1), *[UnavailableError("away")] * 40, done(messages_pb2.Run(name="runs/r1"))]
    assert (await waiting(answers).wait(NAME)).name == "runs/r1"


async def test_wait_gives_up_on_a_service_that_stays_away(waiting) -> None:
    """After two minutes without an answer the error comes through."""
    with pytest.raises(UnavailableError):
        await waiting([UnavailableError("away")]).wait(NAME)


async def test_wait_ends_at_its_deadline(waiting) -> None:
    """The time that was given is kept, whether the service answers or not."""
    for answer in (under_way(1), UnavailableError("away")):
        with pytest.raises(DeadlineExceededError, match="goes on"):
            await waiting([answer]).wait(NAME, timeout_s=5)


async def test_wait_raises_what_the_work_failed_with(waiting) -> None:
    """The error keeps its class across the wire."""
    with pytest.raises(StorageFullError, match="disk"):
        await waiting([done(status_from_error(StorageFullError("no disk left")))]).wait(NAME)


async def test_wait_raises_what_will_not_pass(waiting) -> None:
    """An operation that does not exist is not waited for."""
    with pytest.raises(NotFoundError):
        await waiting([NotFoundError("no such operation")]).wait(NAME)


async def test_unknown_result_is_refused(waiting) -> None:
    """A result of a newer service is named, not guessed."""
    with pytest.raises(DataLossError, match="Progress"):
        await waiting([done(operation_pb2.Progress())]).wait(NAME)


@pytest.mark.parametrize(
    ("name", "service"),
    [
        ("operations/activations-h-1", "activations"),
        ("operations/trainer-r", "trainer"),
        ("attribution-x", "attribution"),
    ],
)
def test_operation_name_says_who_keeps_it(name: str, service: str) -> None:
    """The service stands before the first dash."""
    assert operation_service(name) == service
