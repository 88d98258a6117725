"""Lists of interpretations: what has ended is kept, for as long as it is what is stored."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from weft.features.v1 import interpretation_pb2, jobs_pb2
from weft_attribution.interpretation_work import EXPLAIN
from weft_attribution.servicer_jobs import FeatureJobServicer
from weft_common.operations import MemoryOperationStore, OperationContext, OperationKind, OperationManager

NOTHING: Any = None


class Counted(MemoryOperationStore):
    """Counts what is read of each operation."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []

    def get(self, name: str) -> tuple[bytes, str]:
        self.reads.append(name)
        return super().get(name)


def request(model: str) -> interpretation_pb2.ExplainFeaturesRequest:
    return interpretation_pb2.ExplainFeaturesRequest(parent="transcoders/t", prompt=model)


async def explain(context: OperationContext) -> interpretation_pb2.ExplainFeaturesResponse:
    return interpretation_pb2.ExplainFeaturesResponse()


async def run(manager: OperationManager, name: str, prompt: str) -> str:
    metadata = interpretation_pb2.InterpretationMetadata(parent="transcoders/t")
    operation = await manager.start(EXPLAIN, f"{EXPLAIN}.{name}", request(prompt), metadata)
    assert (await manager.wait(operation.name, 10)).done
    return operation.name


@pytest.fixture
async def stack() -> Any:
    async with AsyncExitStack() as stack:
        yield stack


async def test_deleted_work_that_is_begun_anew_is_told_as_it_is(stack: AsyncExitStack) -> None:
    """An id that is used again, by whichever replica, is other work; one that is gone is not told."""
    store = MemoryOperationStore()
    manager, other = (OperationManager("t", store, {EXPLAIN: OperationKind(explain)}, poll_s=0.01) for _ in range(2))
    await stack.enter_async_context(manager.run())
    servicer = FeatureJobServicer(NOTHING, manager, NOTHING, NOTHING)
    name, kept = await run(manager, "one", "a/1"), await run(manager, "two", "b/1")

    async def prompts() -> dict[str, str]:
        found = await servicer.ListInterpretations(jobs_pb2.ListInterpretationsRequest(), NOTHING)
        return {each.operation: each.explain.prompt for each in found.interpretations}

    assert await prompts() == {name: "a/1", kept: "b/1"}
    await other.delete(name)
    assert await run(manager, "one", "c/1") == name
    assert await prompts() == {name: "c/1", kept: "b/1"}
    await other.delete(kept)
    assert await prompts() == {name: "c/1"}


async def test_work_that_has_ended_is_read_again_on_its_page_alone(stack: AsyncExitStack) -> None:
    """A list of much work that has ended reads as much as a page has."""
    store = Counted()
    manager = OperationManager("t", store, {EXPLAIN: OperationKind(explain)}, poll_s=0.01)
    async with manager.run():
        await asyncio.gather(*(run(manager, f"number-{number}", "a/1") for number in range(12)))
    servicer = FeatureJobServicer(NOTHING, manager, NOTHING, NOTHING)
    asked = jobs_pb2.ListInterpretationsRequest(page_size=3)
    await servicer.ListInterpretations(asked, NOTHING)
    store.reads.clear()
    found = await servicer.ListInterpretations(asked, NOTHING)
    assert sorted(store.reads) == sorted(each.operation for each in found.interpretations)
    assert len(found.interpretations) == 3
