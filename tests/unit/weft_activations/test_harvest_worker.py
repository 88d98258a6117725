"""A harvest, killed at every step and shared by replicas, reads every planned token once and none twice."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from harvest_fakes import NUM_LAYERS, FakeBackend, FakeCatalog, Fate, KilledError, Mortal, expected_row

from weft_activations.core.corpus import store_corpus
from weft_activations.core.harvest_records import (
    HarvestProgress,
    HarvestRecord,
    HarvestRecords,
    HarvestSpec,
    StreamPair,
)
from weft_activations.core.harvest_worker import HarvestWorker
from weft_activations.core.harvests import Harvests
from weft_activations.core.inference import Inference
from weft_activations.core.packing import Packing
from weft_activations.core.planning import HarvestPlanner
from weft_activations.core.ports import Split
from weft_common.errors import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    UnavailableError,
)
from weft_store.adapters.memory import MemoryObjectStore
from weft_store.documents import read_json
from weft_store.shard import ShardReader, basis_key, encode_blocks

SPEC = HarvestSpec(
    model="fake",
    dataset="d",
    corpus="c",
    num_tokens=60,
    held_out_share=0.25,
    sequence_tokens=8,
    input_hook="mlp_in",
    output_hook="mlp_out",
    codec="bf16",
    target_fvu=0.0,
    max_norm_ratio=0.0,
    lease_sequences=3,
)
BOTH = replace(SPEC, also=(StreamPair("r", "resid_mid", "mlp_out"),))
DOCUMENTS = {f"doc{index}": f"document {index} says {'abc'[index % 3] * (index + 3)}".encode() for index in range(8)}


class World:
    """A bucket, a catalog and a clock that outlive the processes working on them."""

    def __init__(self) -> None:
        self.store = MemoryObjectStore()
        self.catalog = FakeCatalog(self.store)
        self.now = 1000.0
        store_corpus(self.store, "c", DOCUMENTS)

    def run(
        self,
        fate: Fate | None = None,
        owner: str = "a",
        backend: FakeBackend | None = None,
        spec: HarvestSpec = SPEC,
    ) -> HarvestProgress:
        """Create the harvest and work on it, as a fresh process would."""
        fate = fate or Fate(None, after=False)
        return asyncio.run(self._run(fate, owner, backend or FakeBackend(), spec))

    async def _run(self, fate: Fate, owner: str, backend: FakeBackend, spec: HarvestSpec) -> HarvestProgress:
        store: Any = Mortal(self.store, fate)
        catalog: Any = Mortal(self.catalog, fate)
        inference = Inference(backend)
        try:
            planner = HarvestPlanner(store, inference)
            await Harvests(store, catalog, inference, planner, clock=lambda: self.now).create("h", spec, "")
            worker = HarvestWorker(
                store, catalog, inference, planner, owner=owner, poll_s=0.001, patience_s=5, clock=lambda: self.now
            )
            return await worker.run("h", _ignore)
        finally:
            inference.close()

    def rows(self, dataset: str = "d") -> Counter[tuple[Any, ...]]:
        """Read everything committed: (split, inputs, outputs) of each token."""
        found: Counter[tuple[Any, ...]] = Counter()
        for shard in self.catalog.datasets[dataset].shards.values():
            reader = ShardReader(self.store, shard.key)
            for group in range(reader.header.num_row_groups):
                block = reader.read_row_group(group)
                for token in range(reader.header.rows(group)):
                    row = tuple(block[stream][:, token].tobytes() for stream in ("input", "output"))
                    found[(shard.split.value, *row)] += 1
        return found


async def _ignore(progress: HarvestProgress) -> None:
    return


@pytest.fixture(scope="module")
def undisturbed() -> World:
    world = World()
    world.run()
    return world


def test_harvest_commits_exactly_the_planned_tokens(undisturbed: World) -> None:
    """Every row is what the model gives for its token and position; position 0 and nothing else is missing."""
    rows = undisturbed.rows()
    assert sum(rows.values()) == SPEC.num_tokens
    assert undisturbed.catalog.datasets["d"].sealed
    letters = {letter for text in DOCUMENTS.values() for letter in text}

    possible = {
        tuple(np.array(part, np.float32).tobytes() for part in expected_row(letter, position))
        for letter in letters
        for position in range(1, SPEC.sequence_tokens)
    }
    assert {row[1:] for row in rows} <= possible
    assert NUM_LAYERS == 2


def test_harvest_by_klt_shares_one_basis(undisturbed: World) -> None:
    """Every shard names the basis that the first one learned, and rows are the model's within the wanted FVU."""
    world, fate = World(), Fate(None, after=False)
    spec = replace(SPEC, codec="klt", target_fvu=1e-3)
    asyncio.run(world._run(fate, "a", FakeBackend(), spec))
    (basis,) = world.store.list("datasets/d/bases/")
    errors, deviations = 0.0, 0.0
    for index, shard in world.catalog.datasets["d"].shards.items():
        reader = ShardReader(world.store, shard.key)
        assert basis.key == basis_key(shard.key, reader.header.basis)
        exact = ShardReader(world.store, shard.key).read_row_group(0)["input"]
        other = ShardReader(undisturbed.store, undisturbed.catalog.datasets["d"].shards[index].key)
        wanted = other.read_row_group(0)["input"].astype(np.float64)
        errors += float(((exact - wanted) ** 2).sum())
        deviations += float(((wanted - wanted.mean(1, keepdims=True)) ** 2).sum())
    assert errors <= 1.1e-3 * deviations


def test_harvest_splits_by_document(undisturbed: World) -> None:
    """Both splits have tokens, near the share that was asked for."""
    rows = undisturbed.rows()
    held_out = sum(count for row, count in rows.items() if row[0] == "held_out")
    assert 0.1 * SPEC.num_tokens <= held_out <= 0.5 * SPEC.num_tokens


def test_harvest_commits_held_out_shards_first(undisturbed: World) -> None:
    """One replica commits in the order in which it takes leases; shards keep the indices of their leases."""
    shards = undisturbed.catalog.datasets["d"].shards
    splits = [shard.split.value for shard in shards.values()]
    assert splits == sorted(splits)
    assert len(set(splits)) == 2
    assert sorted(shards) == list(range(len(shards)))
    assert splits[0] == shards[max(shards)].split.value == "held_out"


def test_harvest_progress_counts_what_is_committed(undisturbed: World) -> None:
    """Progress is the sum over leases, and asking again changes nothing."""
    before = undisturbed.rows()
    progress = undisturbed.run()
    assert undisturbed.rows() == before
    assert progress.tokens_committed == SPEC.num_tokens
    assert progress.tokens_held_out == sum(count for row, count in before.items() if row[0] == "held_out")
    assert progress.num_leases_done == progress.record.num_leases >= 4


@pytest.mark.parametrize("on_processor", [False, True], ids=["on a device", "on processors"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_harvest_killed_at_any_step_loses_and_doubles_nothing(
    undisturbed: World, after: bool, on_processor: bool
) -> None:
    """A process that dies at its n-th step, for every n, leaves what a second one completes to the same rows."""
    expected = undisturbed.rows()
    deaths = 0
    for step in range(10_000):
        world = World()
        try:
            world.run(Fate(step, after=after), backend=FakeBackend(on_processor=on_processor))
        except KilledError:
            deaths += 1
        else:
            break
        world.now += 60
        world.run(owner="b", backend=FakeBackend(on_processor=on_processor))
        assert world.rows() == expected, f"killed at step {step}"
        assert world.catalog.datasets["d"].sealed
    assert deaths > 40


@pytest.mark.parametrize("on_processor", [False, True], ids=["on a device", "on processors"])
def test_encoding_and_passes_share_time_only_where_the_model_has_a_device(
    undisturbed: World, monkeypatch: pytest.MonkeyPatch, on_processor: bool
) -> None:
    """On processors a pass begins when the lease before is encoded; on a device it need not wait."""
    passes: list[tuple[float, float]] = []
    encodings: list[tuple[float, float]] = []

    @contextmanager
    def timed(spans: list[tuple[float, float]]) -> Iterator[None]:
        started = time.monotonic()
        yield
        time.sleep(0.05)
        spans.append((started, time.monotonic()))

    class Watched(FakeBackend):
        def streams(self, *arguments: Any) -> int:
            with timed(passes):
                return super().streams(*arguments)

    def encode(*arguments: Any, **options: Any) -> Any:
        with timed(encodings):
            return encode_blocks(*arguments, **options)

    monkeypatch.setattr("weft_activations.core.harvest_worker.encode_blocks", encode)
    world = World()
    world.run(backend=Watched(on_processor=on_processor))
    assert world.rows() == undisturbed.rows()
    together = any(first < stop and start < last for start, stop in passes for first, last in encodings)
    assert together == (not on_processor)


def test_harvest_lets_others_in_between_turns(undisturbed: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease goes on where it left off for whoever waited; alone it is one call."""
    monkeypatch.setattr("weft_activations.core.harvest_worker._TURN_TOKENS", SPEC.sequence_tokens)
    world, calls, waiting = World(), list[int](), [False]

    class Asked(FakeBackend):
        def streams(self, model_id: str, turns: Any, into: Any, others_wait: Any = None) -> int:
            calls.append(len(turns))
            return super().streams(model_id, turns, into, lambda: waiting[0])

    world.run(backend=Asked())
    assert world.rows() == undisturbed.rows()
    alone, world, waiting[0] = list(calls), World(), True
    calls.clear()
    world.run(backend=Asked())
    assert world.rows() == undisturbed.rows()
    assert calls == [left for turns in alone for left in range(turns, 0, -1)]
    assert max(alone) > 1


def test_pairs_of_streams_of_one_harvest_go_to_datasets_of_their_own(undisturbed: World) -> None:
    """One reading of the model fills both: the first as alone, the second with the same tokens' other inputs."""
    world, backend = World(), FakeBackend()
    progress = world.run(backend=backend, spec=BOTH)
    alone = FakeBackend()
    World().run(backend=alone)
    assert backend.tokens_run == alone.tokens_run
    assert world.rows("d") == undisturbed.rows("d")
    added = {tuple((np.frombuffer(row[1], np.float32) - 1).tolist()): row[2] for row in world.rows("r")}
    assert added == {tuple(np.frombuffer(row[1], np.float32).tolist()): row[2] for row in undisturbed.rows("d")}
    assert [world.catalog.datasets[name].sealed for name in ("d", "r")] == [True, True]
    assert [world.catalog.datasets[name].spec.input_hook for name in ("d", "r")] == ["mlp_in", "resid_mid"]
    assert progress.tokens_committed == SPEC.num_tokens


def test_harvest_of_two_pairs_killed_at_any_step_loses_and_doubles_nothing() -> None:
    """Wherever the process dies, between two datasets too, a second one completes both to the same rows."""
    whole = World()
    whole.run(spec=BOTH)
    expected = [whole.rows(name) for name in ("d", "r")]
    deaths = 0
    for step in range(0, 10_000, 3):
        world = World()
        try:
            world.run(Fate(step, after=bool(step % 2)), spec=BOTH)
        except KilledError:
            deaths += 1
        else:
            break
        world.now += 60
        world.run(owner="b", spec=BOTH)
        assert [world.rows(name) for name in ("d", "r")] == expected, f"killed at step {step}"
        assert all(world.catalog.datasets[name].sealed for name in ("d", "r"))
    assert deaths > 20


@pytest.mark.parametrize(
    ("also", "field", "words"),
    [
        ((StreamPair("d", "resid_mid", "mlp_out"),), "spec.also[0].dataset", "named twice"),
        ((StreamPair("r", "mlp_in", "nowhere"),), "spec.also[0].streams.output_hook", "expected mlp_out"),
        (
            (StreamPair("r", "mlp_in", "mlp_out"), StreamPair("not an id", "mlp_in", "mlp_out")),
            "spec.also[1].dataset",
            "not an id",
        ),
        (tuple(StreamPair(f"r{i}", "mlp_in", "mlp_out") for i in range(8)), "spec.also", "7 at most"),
    ],
)
def test_wrong_further_pair_is_refused(also: tuple[StreamPair, ...], field: str, words: str) -> None:
    """The error names the pair, and nothing is created."""
    world = World()
    with pytest.raises(InvalidArgumentError, match=words) as caught:
        world.run(spec=replace(SPEC, also=also))
    assert caught.value.field == field
    assert world.catalog.datasets == {}


def test_harvest_whose_second_dataset_is_taken_is_refused() -> None:
    """A dataset that is there already is found before anything is created."""
    world = World()
    world.run(spec=replace(SPEC, dataset="r"))
    world.store.delete("harvests/h/harvest.json")
    with pytest.raises(AlreadyExistsError) as caught:
        world.run(spec=BOTH)
    assert caught.value.field == "spec.also[0].dataset"
    assert list(world.catalog.datasets) == ["r"]


def test_harvest_killed_again_and_again_ends_the_same(undisturbed: World) -> None:
    """A process that dies every few steps still ends with the same rows."""
    world = World()
    for life in range(1000):
        try:
            world.run(Fate(35 + life % 7, after=life % 2 == 0), owner=f"life{life}")
        except KilledError:
            world.now += 60
            continue
        break
    assert 2 < life < 999, "no life was long enough for a lease"
    assert world.rows() == undisturbed.rows()


async def test_harvest_is_shared_by_two_replicas() -> None:
    """Two replicas at once read each token about once, and commit it exactly once."""
    world = World()
    backends = [FakeBackend(), FakeBackend()]
    fates = [Fate(None, after=False) for _ in backends]
    await asyncio.gather(*(world._run(fate, f"r{index}", backends[index], SPEC) for index, fate in enumerate(fates)))
    assert sum(world.rows().values()) == SPEC.num_tokens
    assert all(backend.tokens_run > 0 for backend in backends)
    lengths = sum(len(text) for text in DOCUMENTS.values())
    assert sum(backend.tokens_run for backend in backends) <= lengths


def test_harvest_leaves_out_tokens_of_large_norm() -> None:
    """Tokens at or above the ratio are skipped, counted, and the means that decide are stored once."""
    world = World()
    spec = replace(SPEC, max_norm_ratio=1.05)
    progress = asyncio.run(world._run(Fate(None, after=False), "a", FakeBackend(), spec))
    means = progress.record.mean_norms
    assert means is not None
    kept = world.rows()
    assert progress.tokens_skipped > 0
    assert sum(kept.values()) == progress.tokens_committed == SPEC.num_tokens - progress.tokens_skipped

    for row in kept:
        outputs = np.frombuffer(row[2], np.float32).reshape(NUM_LAYERS, -1)
        assert (np.linalg.norm(outputs, axis=1) < 1.05 * np.array(means)).all()
    records = HarvestRecords(world.store)
    assert records.set_mean_norms("h", (1.0, 1.0)).mean_norms == means


def test_harvest_tells_which_tokens_it_left_out() -> None:
    """What is told to be kept is what is stored, of every split, beside filtered tokens, also where replicas died."""
    packing = Packing(cross_documents=True, separator_token_id=7, skipped_token_ids=(ord("e"),))
    spec = replace(SPEC, packing=packing, held_out_share=0.2, max_norm_ratio=1.05)
    world = World()
    backend = FakeBackend(bos_token_id=1)
    with suppress(KilledError):
        world.run(Fate(30, after=True), "a", FakeBackend(bos_token_id=1), spec)
    world.now += 100
    asyncio.run(world._run(Fate(None, after=False), "b", backend, spec))

    async def told(split: Split) -> Any:
        inference = Inference(backend)
        try:
            harvests = Harvests(world.store, world.catalog, inference, HarvestPlanner(world.store, inference))
            return await harvests.sequences("d", split, 0)
        finally:
            inference.close()

    wanted: Counter[tuple[Any, ...]] = Counter()
    left_out = 0
    for split in Split:
        found = asyncio.run(told(split))
        for sequence, gap in zip(found.sequences, found.left_out, strict=True):
            left_out += len(gap)
            for position in sorted({*range(1, len(sequence.ids))} - {*sequence.skipped.tolist()} - {*gap.tolist()}):
                row = expected_row(int(sequence.ids[position]), position)
                wanted[(split.value, *(np.array(part, np.float32).tobytes() for part in row))] += 1
    assert left_out > 0
    assert world.rows() == wanted
    some = next(info.key for info in world.store.list("harvests/h/left_out/"))
    world.store.put(some, world.store.get(some) + bytes(4))
    with pytest.raises(DataLossError, match="tokens were left out"):
        _ = [asyncio.run(told(split)) for split in Split]
    for info in list(world.store.list("harvests/h/left_out/")):
        world.store.delete(info.key)
    assert None in [asyncio.run(told(split)).left_out for split in Split]


async def test_paused_harvest_is_left_alone_by_every_replica(undisturbed: World) -> None:
    """What was begun is committed, no lease is held, no token is read; resumed, it ends with the same rows."""
    world = World()
    inference = Inference(backend := FakeBackend())
    planner = HarvestPlanner(world.store, inference)
    harvests = Harvests(world.store, world.catalog, inference, planner)
    await harvests.create("h", SPEC, "")
    paused = asyncio.Event()

    async def pause(progress: HarvestProgress) -> None:
        if progress.num_leases_done == 1 and not paused.is_set():
            await harvests.set_paused("h", True)
            paused.set()

    def held() -> list[str]:
        leases = [read_json(world.store, info.key)[0] for info in world.store.list("harvests/h/leases/")]
        return [lease["state"] for lease in leases if lease["state"] != "done" and lease["expires_s"] > 0]

    workers = [
        HarvestWorker(world.store, world.catalog, inference, planner, owner=owner, poll_s=0.001) for owner in "ab"
    ]
    first = asyncio.create_task(workers[0].run("h", pause))
    await paused.wait()
    while held():  # noqa: ASYNC110  the end of a lease is seen in the bucket only
        await asyncio.sleep(0.001)
    second = asyncio.create_task(workers[1].run("h", _ignore))
    read = backend.tokens_run
    await asyncio.sleep(0.05)
    assert (backend.tokens_run, held(), first.done(), second.done()) == (read, [], False, False)
    assert 0 < sum(world.rows().values()) < SPEC.num_tokens
    await harvests.set_paused("h", False)
    await asyncio.gather(first, second)
    inference.close()
    assert world.rows() == undisturbed.rows()


def test_harvest_stores_what_its_packing_keeps_and_tells_the_same() -> None:
    """Filtered tokens are read and not stored, over documents' ends too; the sequences told again are those stored."""
    world = World()
    skipped = (ord(" "), ord("e"))
    packing = Packing(cross_documents=True, separator_token_id=7, skipped_token_ids=skipped)
    spec = replace(SPEC, packing=packing, held_out_share=0.2)
    backend = FakeBackend(bos_token_id=1)
    progress = asyncio.run(world._run(Fate(None, after=False), "a", backend, spec))
    assert (progress.tokens_committed, progress.tokens_held_out, progress.tokens_skipped) == (60, 12, 0)
    wanted: Counter[tuple[Any, ...]] = Counter()

    async def told() -> None:
        inference = Inference(backend)
        try:
            harvests = Harvests(world.store, world.catalog, inference, HarvestPlanner(world.store, inference))
            for split in Split:
                for sequence in (await harvests.sequences("d", split, 0)).sequences:
                    assert sequence.ids[0] == 1
                    for position in sorted(set(range(1, len(sequence.ids))) - set(sequence.skipped.tolist())):
                        row = expected_row(int(sequence.ids[position]), position)
                        wanted[(split.value, *(np.array(part, np.float32).tobytes() for part in row))] += 1
        finally:
            inference.close()

    asyncio.run(told())
    assert world.rows() == wanted
    stored = {np.frombuffer(row[1], np.float32)[0] for row in wanted}
    assert not stored & {1.0, 7.0, *map(float, skipped)}
    assert HarvestRecords(world.store).get("h").spec == spec


def test_harvest_writes_its_lineage_into_the_dataset() -> None:
    """Harvest, settings and versions are in the dataset's spec, those of the request on whichever replica."""
    world = World()

    async def run() -> None:
        inference = Inference(FakeBackend())
        try:
            planner = HarvestPlanner(world.store, inference)
            harvests = Harvests(world.store, world.catalog, inference, planner, versions={"weft": "1.2"})
            await harvests.create("h", SPEC, "")
            await HarvestWorker(world.store, world.catalog, inference, planner, owner="a").run("h", _ignore)
        finally:
            inference.close()

    asyncio.run(run())
    lineage = json.loads(world.catalog.datasets["d"].spec.lineage)
    assert (lineage["harvest"], lineage["versions"]) == ("harvests/h", {"weft": "1.2"})
    assert HarvestSpec.from_json(lineage["spec"]) == SPEC
    assert lineage["plan_digest"] == HarvestRecords(world.store).get("h").plan_digest


def test_harvest_of_before_there_were_packings_is_read() -> None:
    """A record without the fields that came later has what they mean when left out, and no lineage."""
    document = _record("h").to_json()
    del document["spec"]["packing"], document["versions"], document["corpus_broken_records"]
    del document["paused"]
    assert HarvestRecord.from_json(document) == _record("h")
    assert _record("h").lineage == ""


def test_harvest_refuses_a_replica_with_another_model() -> None:
    """A model that changed under a harvest is a failed precondition that names both revisions."""
    world = World()
    with pytest.raises(KilledError):
        world.run(Fate(30, after=False))
    record = HarvestRecords(world.store).get("h")
    world.now += 60

    async def other() -> None:
        inference = Inference(FakeBackend(revision="0ddba11" * 9))
        try:
            planner = HarvestPlanner(world.store, inference)
            worker = HarvestWorker(world.store, world.catalog, inference, planner, owner="b", patience_s=1)
            await worker.run("h", _ignore)
        finally:
            inference.close()

    with pytest.raises(FailedPreconditionError, match=r"model 5eed5eed.*0ddba11"):
        asyncio.run(other())
    assert HarvestRecords(world.store).get("h") == record


def test_harvest_waits_for_a_catalog_that_restarts() -> None:
    """Unavailable answers are asked again and cost nothing."""
    world = World()
    left = iter(range(3))
    commit = world.catalog.commit_shard

    async def flaky(*args: Any) -> Any:
        if next(left, None) is not None:
            raise UnavailableError("the cache restarts")
        return await commit(*args)

    world.catalog.commit_shard = flaky  # type: ignore[method-assign]
    assert world.run().tokens_committed == SPEC.num_tokens


def test_harvests_of_one_dataset_exclude_each_other() -> None:
    """A dataset that another harvest writes is refused, when asked for and again when the work begins."""
    world = World()
    with pytest.raises(KilledError):
        world.run(Fate(30, after=False))
    records = HarvestRecords(world.store)
    with pytest.raises(AlreadyExistsError, match="being written by harvests/h"):
        records.check_claim("d", "other")
    records.create(_record("other"))
    with pytest.raises(AlreadyExistsError, match="being written by harvests/h"):
        records.claim_dataset("d", "other")
    records.change("h", lambda there: replace(there, sealed=True))
    records.claim_dataset("d", "other")
    with pytest.raises(AlreadyExistsError, match="being written by harvests/other"):
        records.check_claim("d", "h")


def _record(harvest_id: str) -> HarvestRecord:
    return HarvestRecord(harvest_id, SPEC, "", 0.0, 1, "rev", "digest", "plan", 1, 1)
