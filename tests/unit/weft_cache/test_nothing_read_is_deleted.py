"""A model of readers, writers, deletions and collections that take turns in every order and die at any step."""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import combinations
from typing import Any

from cache_house import SPEC, House
from hypothesis import given, settings
from hypothesis import strategies as st
from interleaving import Program, take_turns

from weft_cache.core.garbage import DEFAULT_AGE_S
from weft_cache.core.retention import Retention
from weft_common.errors import FailedPreconditionError, NotFoundError, WeftError
from weft_store import ObjectStore
from weft_store.adapters.memory import MemoryObjectStore
from weft_store.documents import encode_json

_OLD_S = 2.0 * DEFAULT_AGE_S


class _OldStore(MemoryObjectStore):
    """A bucket in which everything but its moment was written long ago."""

    def list(self, prefix: str) -> Any:
        for item in super().list(prefix):
            yield replace(item, modified_s=item.modified_s - _OLD_S)


@dataclass
class _Model:
    """What must be there: the objects of who holds, and every shard whose commit was answered."""

    store: MemoryObjectStore
    held: dict[str, set[str]] = field(default_factory=dict)
    committed: dict[int, str] = field(default_factory=dict)

    def check(self) -> None:
        """Nothing that is read, and nothing that was taken into a dataset that still is one, is gone."""
        there = {item.key for item in self.store.list("datasets/")}
        for holder, keys in self.held.items():
            assert keys <= there, f"{holder} reads {keys - there}, which is gone"


def _house(store: ObjectStore, year: int = 9000) -> House:
    """The cache in one process; the bucket's own time is later than the dataset's, whatever the process believes."""
    return House(store=store, now=datetime(year, 1, 1, tzinfo=UTC))


def _reader(model: _Model, run: str) -> Any:
    """A run that holds the dataset, reads it twice and ends, or fails and is resumed."""

    def body(store: ObjectStore) -> None:
        house = _house(store)
        for _ in range(2):
            model.store.put(f"runs/{run}/run.json", encode_json({"run": run, "state": "PENDING"}))
            try:
                house.holds.hold("a", f"runs/{run}")
            except WeftError:
                model.store.put(f"runs/{run}/run.json", encode_json({"run": run, "state": "FAILED"}))
                return
            shards = house.catalog.get("a").shards
            model.held[run] = {shard.key for shard in shards} | {"datasets/a/manifest.json"}
            for shard in shards:
                store.get(shard.key)
            store.info("datasets/a/manifest.json")
            del model.held[run]
            model.store.put(f"runs/{run}/run.json", encode_json({"run": run, "state": "FAILED"}))

    return body


def _deleter(store: ObjectStore) -> None:
    try:
        _house(store).deletion.delete("a")
    except WeftError:
        return


def _collector(store: ObjectStore) -> None:
    try:
        found = _house(store).garbage.collect(delete=True)
    except WeftError:
        return
    assert found.problems == [] or "changed" in found.problems[0] or "held and changed" in found.problems[0]


def _sealed_dataset(store: ObjectStore) -> None:
    house = _house(store, 2001)
    house.catalog.create("a", SPEC)
    house.add("a", 0, 2)
    house.sealing.seal("a", 1)
    house.catalog.update("a", {}, [], Retention(keep_days=1))


_TURNS = st.lists(st.integers(0, 3), max_size=60)
_KILLS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 3)), max_size=2)


@settings(max_examples=50, deadline=None)
@given(turns=_TURNS, kills=_KILLS)
def test_what_a_run_reads_is_never_deleted(turns: list[int], kills: list[tuple[int, int]]) -> None:
    """Two runs read, somebody deletes, garbage is collected; in no order and after no crash is anything read gone."""
    store = _OldStore()
    _sealed_dataset(store)
    model = _Model(store)
    bodies = [_reader(model, "r1"), _deleter, _collector, _reader(model, "r2")]
    programs = [Program(store, body) for body in bodies]

    def check() -> None:
        # A run that was killed reads no more, though its hold stays until its run has ended.
        for program, run in ((programs[0], "r1"), (programs[3], "r2")):
            if program.killed:
                model.held.pop(run, None)
        model.check()

    take_turns(programs, turns, kills, check)
    # Whatever is left can be deleted in the end, once nobody reads: nothing is held for ever.
    for run in ("r1", "r2"):
        store.put(f"runs/{run}/run.json", encode_json({"run": run, "state": "CANCELLED"}))
    _house(store).garbage.collect(delete=True)
    _house(store).garbage.collect(delete=True)
    assert [item.key for item in store.list("datasets/")] == []


def test_hold_and_deletion_meet_in_every_order() -> None:
    """Whatever the order of their operations: one of them is refused, and never do both have their way."""
    outcomes = set()
    for places in combinations(range(10), 4):
        store = _OldStore()
        _sealed_dataset(store)
        store.put("runs/r/run.json", encode_json({"run": "r", "state": "PENDING"}))
        done: dict[str, bool] = {}

        def hold(mine: ObjectStore, done: dict[str, bool] = done) -> None:
            try:
                _house(mine).holds.hold("a", "runs/r")
                done["held"] = True
            except NotFoundError:
                done["held"] = False

        def delete(mine: ObjectStore, done: dict[str, bool] = done) -> None:
            try:
                _house(mine).deletion.delete("a")
                done["deleted"] = True
            except FailedPreconditionError:
                done["deleted"] = False

        programs = [Program(store, hold), Program(store, delete)]
        take_turns(programs, [0 if turn in places else 1 for turn in range(10)], [], lambda: None)
        assert done["held"] != done["deleted"], places
        assert bool(list(store.list("datasets/"))) == done["held"]
        outcomes.add(done["held"])
    assert outcomes == {True, False}


def _writer(model: _Model, seed: int) -> Any:
    def body(store: ObjectStore) -> None:
        house = _house(store)
        try:
            record, encoded, _ = house.upload("a", 0, 2, seed=seed)
            kept = house.commits.commit("a", record, encoded.statistics)
        except WeftError:
            return
        model.committed.setdefault(seed, kept.key)

    return body


def _sealer(store: ObjectStore) -> None:
    try:
        _house(store).sealing.seal("a", 1)
    except WeftError:
        return


@settings(max_examples=50, deadline=None)
@given(turns=_TURNS, kills=_KILLS)
def test_what_is_committed_is_never_collected(turns: list[int], kills: list[tuple[int, int]]) -> None:
    """Two writers of one shard, a seal and a collection: every answered commit names one shard, which stays."""
    store = _OldStore()
    _house(store, 2001).catalog.create("a", SPEC)
    model = _Model(store)
    bodies = [_writer(model, 1), _writer(model, 2), _collector, _sealer]
    programs = [Program(store, body) for body in bodies]

    def check() -> None:
        kept = set(model.committed.values())
        assert len(kept) <= 1, "one index was committed twice"
        assert kept <= {item.key for item in store.list("datasets/")}, "a committed shard is gone"

    take_turns(programs, turns, kills, check)
    house = _house(store)
    if not model.committed:
        # A writer that comes after all of this still can, unless it was sealed or committed without an answer.
        house.upload("a", 0, 2, seed=7)
        record, encoded, _ = house.upload("a", 0, 2, seed=7)
        house.commits.commit("a", record, encoded.statistics)
    house.sealing.seal("a", 1)
    house.garbage.collect(delete=True)
    assert house.reading.verify("a").problems == ()
    uploads = [item.key for item in store.list("datasets/a/shards/")]
    assert uploads == [house.catalog.get("a").shards[0].key]
