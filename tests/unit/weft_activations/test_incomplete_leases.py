"""What becomes of `weft_extract_incomplete_total` where a piece of a harvest does not become this replica's shard."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from harvest_fakes import FakeBackend, FakeCatalog

from weft_activations.core.corpus import store_corpus
from weft_activations.core.harvest_records import HarvestSpec
from weft_activations.core.harvest_worker import HarvestWorker
from weft_activations.core.harvests import Harvests
from weft_activations.core.inference import Inference
from weft_activations.core.planning import HarvestPlanner
from weft_activations.core.ports import CommittedShard
from weft_common.errors import FailedPreconditionError
from weft_common.metrics import REGISTRY
from weft_store.adapters.memory import MemoryObjectStore

SPEC = HarvestSpec(
    model="fake",
    dataset="d",
    corpus="c",
    num_tokens=30,
    held_out_share=0.0,
    sequence_tokens=8,
    input_hook="mlp_in",
    output_hook="mlp_out",
    codec="bf16",
    target_fvu=0.0,
    max_norm_ratio=0.0,
    lease_sequences=3,
)


def _incomplete(reason: str) -> float:
    return REGISTRY.get_sample_value("weft_extract_incomplete_total", {"reason": reason}) or 0.0


class World:
    """A harvest of a few leases, and the catalog that takes its shards."""

    def __init__(self) -> None:
        self.store = MemoryObjectStore()
        self.catalog = FakeCatalog(self.store)
        store_corpus(self.store, "c", {f"doc{index}": b"some letters to read" for index in range(4)})

    async def run(self) -> None:
        inference = Inference(FakeBackend())
        try:
            planner = HarvestPlanner(self.store, inference)
            await Harvests(self.store, self.catalog, inference, planner).create("h", SPEC, "")
            worker = HarvestWorker(self.store, self.catalog, inference, planner, owner="a", poll_s=0.001, patience_s=1)
            await worker.run("h", _ignore)
        finally:
            inference.close()


async def _ignore(progress: Any) -> None:
    return


def test_undisturbed_harvest_counts_nothing_as_incomplete() -> None:
    """Where every lease becomes this replica's shard, no reason is counted."""
    reasons = ("another_was_first", "failed_precondition", "interrupted")
    before = [_incomplete(reason) for reason in reasons]
    asyncio.run(World().run())
    assert [_incomplete(reason) for reason in reasons] == before


def test_shard_that_another_replica_committed_first_is_counted() -> None:
    """One lease whose index was taken meanwhile counts once, as `another_was_first`, and the harvest ends well."""
    world = World()
    before = _incomplete("another_was_first")
    commit = world.catalog.commit_shard

    async def second(dataset_id: str, shard: CommittedShard) -> CommittedShard:
        if shard.index == 1:
            other = f"datasets/{dataset_id}/shards/1-other.weft"
            world.store.put(other, world.store.get(shard.key))
            await commit(dataset_id, replace(shard, key=other))
        return await commit(dataset_id, shard)

    world.catalog.commit_shard = second  # type: ignore[method-assign]
    asyncio.run(world.run())
    assert world.catalog.datasets["d"].sealed
    assert _incomplete("another_was_first") == before + 1


@pytest.mark.parametrize(
    ("raised", "reason"),
    [(FailedPreconditionError("the dataset is sealed"), "failed_precondition"), (ValueError("a fault"), "unknown")],
)
def test_leases_of_a_harvest_that_fails_are_counted_by_its_reason(raised: Exception, reason: str) -> None:
    """The leases that this replica held count under the error's reason, anything else as `unknown`."""
    world = World()
    before = _incomplete(reason)

    async def refuse(*args: Any) -> Any:
        raise raised

    world.catalog.commit_shard = refuse  # type: ignore[method-assign]
    with pytest.raises(type(raised)):
        asyncio.run(world.run())
    # The one that was refused, and the next one if it was already in the model.
    assert before + 1 <= _incomplete(reason) <= before + 2
