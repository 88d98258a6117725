"""One index by several replicas: each layer made once, equal bytes whoever dies when, and nothing left behind."""

import asyncio
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_rig import IndexRig
from interleaving import KilledError, Program, take_turns

from weft_attribution.core.feature_index.indexing import FeatureIndexing
from weft_attribution.core.feature_index.settings import IndexKeys, IndexRequest
from weft_attribution.core.feature_index.sharing import MANIFEST, IndexShare
from weft_common.errors import AlreadyExistsError, CancelledError
from weft_store.adapters.memory import MemoryObjectStore
from weft_store.documents import create_json, read_json, update_json
from weft_store.port import ObjectStore

KEYS = IndexKeys("t", "i1")
LAYERS = 6
FOREVER_S = 1e9
NO_MODEL: Any = None


def nothing(done: int, total: int) -> None:
    """No progress is wanted."""


def make_rig() -> IndexRig:
    return IndexRig.make(MemoryObjectStore(), num_layers=LAYERS)


def build(
    rig: IndexRig,
    store: ObjectStore,
    request: IndexRequest | None = None,
    *,
    lease_s: float = FOREVER_S,
    clock: Callable[[], float] = lambda: 0.0,
    progress: Callable[[int, int], None] = nothing,
) -> Any:
    """One replica, with one worker; leases are that long, so that no sign of life comes by itself."""
    indexing = FeatureIndexing(
        store,
        NO_MODEL,
        rig,
        memory_bytes=1 << 30,
        workers=1,
        lease_s=lease_s,
        poll_s=0,
        clock=clock,
    )
    return asyncio.run(indexing.build(request or rig.request(), progress))


def bytes_of(store: ObjectStore) -> dict[str, str]:
    """Files of the index; when it was asked for is all that may differ, and stands in two of them."""
    return {
        info.key: hashlib.sha256(store.get(info.key)).hexdigest()
        for info in store.list(KEYS.prefix)
        if info.key not in (KEYS.manifest, KEYS.request)
    }


@pytest.fixture(scope="module")
def alone() -> dict[str, str]:
    rig = make_rig()
    build(rig, rig.store)
    found = bytes_of(rig.store)
    assert sum("/layers/" in key for key in found) == LAYERS
    return found


class Watched:
    """A replica's bucket: counts what is read of the dataset and written; once killed, it does nothing any more."""

    def __init__(self, store: ObjectStore) -> None:
        self._store, self._dead = store, False
        self.num_read, self.written = 0, Counter[str]()

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._store, name)

        def through(*arguments: Any, **options: Any) -> Any:
            if self._dead:
                raise KilledError
            try:
                found = call(*arguments, **options)
            except KilledError:
                self._dead = True
                raise
            if name == "get" and "/shards/" in arguments[0]:
                self.num_read += 1
            if name == "put":
                self.written[arguments[0]] += 1
            return found

        return through


@pytest.mark.parametrize("num_replicas", [2, 3])
def test_replicas_share_the_layers(alone: dict[str, str], num_replicas: int) -> None:
    """Taking turns, each makes as many layers as the others; nothing is read or written twice; all tell the whole."""
    single = make_rig()
    counted: Any = Watched(single.store)
    build(single, counted)
    rig = make_rig()
    watched: list[Any] = []
    told: list[tuple[int, int]] = [(0, 0)] * num_replicas

    def replica(number: int) -> Callable[[ObjectStore], object]:
        def tell(done: int, total: int) -> None:
            told[number] = done, total

        def body(store: ObjectStore) -> object:
            watched.append(Watched(store))
            return build(rig, watched[-1], progress=tell)

        return body

    programs = [Program(rig.store, replica(number)) for number in range(num_replicas)]
    take_turns(programs, list(range(num_replicas)) * 2000, (), lambda: None)
    assert bytes_of(rig.store) == alone
    written = [sum("/layers/" in key for key in each.written) for each in watched]
    assert written == [LAYERS // num_replicas] * num_replicas
    assert sum(each.num_read for each in watched) == counted.num_read > LAYERS
    together = sum((each.written for each in watched), Counter[str]())
    assert together[KEYS.manifest] == together[KEYS.summary] == together[KEYS.text("tokens.bin")] == 1
    assert rig.asked == 1
    assert len(set(told)) == 1
    assert told[0][0] == told[0][1] > 0


@settings(max_examples=20, deadline=None)
@given(
    turns=st.lists(st.integers(0, 2), max_size=400),
    kills=st.lists(st.tuples(st.integers(0, 399), st.integers(0, 2)), max_size=3),
    ticks=st.sampled_from([3, 30, 300]),
)
def test_any_order_and_any_deaths_give_equal_bytes(
    alone: dict[str, str], turns: list[int], kills: list[tuple[int, int]], ticks: int
) -> None:
    """Whoever works or dies between which two operations, and whether leases last: the files are those of one alone."""
    rig = make_rig()
    time = itertools.count()

    def body(store: ObjectStore) -> object:
        mortal: Any = Watched(store)
        return build(rig, mortal, lease_s=ticks * 1e6, clock=lambda: next(time) * 1e6)

    def whole_or_not_there() -> None:
        if any(True for _ in rig.store.list(KEYS.manifest)):
            there = {info.key for info in rig.store.list(KEYS.prefix)}
            assert set(alone) <= there

    programs = [Program(rig.store, body) for _ in range(3)]
    take_turns(programs, turns, kills, whole_or_not_there)
    # They may all be dead; and who died last may have left something behind.
    build(rig, rig.store, clock=lambda: 1e15)
    assert bytes_of(rig.store) == alone


def test_two_requests_at_once_for_one_id_leave_one_index(alone: dict[str, str]) -> None:
    """Asked for otherwise at the same moment, one is made and the other is refused."""
    for first in (0, 1):
        rig = make_rig()
        refused: list[int] = []

        def replica(number: int, rig: IndexRig = rig, refused: list[int] = refused) -> Callable[[ObjectStore], object]:
            def body(store: ObjectStore) -> None:
                try:
                    build(rig, store, rig.request(num_top=3 + number))
                except AlreadyExistsError:
                    refused.append(number)

            return body

        programs = [Program(rig.store, replica(number)) for number in range(2)]
        take_turns(programs, [first, 1 - first] * 2000, (), lambda: None)
        assert len(refused) == 1
        made = read_json(rig.store, KEYS.manifest)[0]["request"]["settings"]["num_top"]
        assert made == 3 + 1 - refused[0]
        assert (bytes_of(rig.store) == alone) == (made == 3)


def test_progress_is_the_sum_over_replicas() -> None:
    """Parts of layers that others make count as far as these told last; what is there counts whole."""
    store, now = MemoryObjectStore(), 0.0
    a, b = (IndexShare(store, KEYS, 3, lease_s=10, clock=lambda: now) for _ in range(2))
    assert a.missing() == ["0", "1", "2"]
    assert (a.take("012"), b.take("012")) == ("0", "1")
    a.tell(0, 0.5)
    b.tell(1, 0.25)
    for each in (a, b, a):
        each.beat()
    assert a.num_done() == b.num_done() == 0.75
    store.put(KEYS.layer(0), b"whole")
    a.finish(0)
    assert a.num_done() == 1.25
    assert b.missing() == ["1", "2"]
    assert b.num_done() == 1.25
    # Text and manifest are no layers.
    assert b.take([MANIFEST]) == MANIFEST
    b.beat()
    assert b.num_done() == 1.25
    now = 11.0
    assert a.take("12") == "1"
    b.tell(1, 0.75)
    b.beat()
    assert not b.holds(1)
    a.tell(1, 0.5)
    a.beat()
    b.beat()
    assert a.num_done() == b.num_done() == 1.5


def test_replica_that_is_taken_for_dead_leaves_the_layer_to_the_other(
    alone: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops with that layer, goes on with others, and takes it over again when the other one dies."""
    shares: list[IndexShare] = []
    monkeypatch.setattr(IndexShare, "begin", lambda share: shares.append(share))
    rig, events = make_rig(), list[str]()
    lease = f"{KEYS.leases}/0.json"

    def step(done: int, total: int) -> None:
        there = [info.key.removeprefix(KEYS.layers) for info in rig.store.list(KEYS.layers)]
        if done and not events:
            events.append("taken over")
            update_json(rig.store, lease, lambda there: {**there, "owner": "other", "expires_s": 1.0})
            shares[0].beat()
        elif "5.parquet" in there and len(events) == 1:
            events.append("others made")
            assert "0.parquet" not in there
            update_json(rig.store, lease, lambda there: {**there, "expires_s": 0.0})
            shares[0].beat()

    build(rig, rig.store, progress=step)
    assert events == ["taken over", "others made"]
    assert bytes_of(rig.store) == alone


async def test_replica_that_waits_for_others_stops_when_it_is_told_to() -> None:
    """While others hold all that is left it ends at once when it is cancelled, and holds no lease any more."""
    rig = make_rig()
    # The last layer is nobody's: it is this one's to make, and then there is nothing more to take.
    for name in "01234":
        create_json(rig.store, f"{KEYS.leases}/{name}.json", {"owner": "other", "state": "taken", "expires_s": 2.0})
    indexing = FeatureIndexing(
        rig.store,
        NO_MODEL,
        rig,
        memory_bytes=1 << 30,
        workers=1,
        poll_s=0.001,
        clock=lambda: 1.0,
    )
    told: list[int] = []
    work = asyncio.ensure_future(indexing.build(rig.request(), lambda done, total: told.append(LAYERS * done // total)))
    async with asyncio.timeout(20):
        while told[-1:] != [1] or not list(rig.store.list(KEYS.layers)):  # noqa: ASYNC110 (another thread puts it)
            await asyncio.sleep(0.001)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
    assert [info.key for info in rig.store.list(KEYS.layers)] == [KEYS.layer(5)]
    owners = {info.key: read_json(rig.store, info.key)[0] for info in rig.store.list(f"{KEYS.leases}/")}
    assert {lease["owner"] for lease in owners.values() if lease["expires_s"]} == {"other"}
    assert len(owners) == LAYERS + 1


def test_replica_that_stops_in_order_is_followed_at_once(alone: dict[str, str]) -> None:
    """What it held is free before its lease would have ended, and the text is not asked for again."""
    rig = make_rig()

    def stop(done: int, total: int) -> None:
        if done:
            raise CancelledError("stopped")

    with pytest.raises(CancelledError):
        build(rig, rig.store, progress=stop)
    assert list(rig.store.list(f"{KEYS.leases}/0.json"))
    build(rig, rig.store)
    assert bytes_of(rig.store) == alone
    assert rig.asked == 1


def test_manifest_that_is_there_when_it_is_ones_turn_is_not_written_again(alone: dict[str, str]) -> None:
    """Another ends the index right before this one takes that up: it looks once more, and clears its lease away."""
    rig = make_rig()
    lease = f"{KEYS.leases}/{MANIFEST}.json"

    class Overtaken(Watched):
        def put(self, key: str, data: bytes, **condition: Any) -> Any:
            if key == lease and not self.written[lease]:
                build(rig, rig.store)
            return self.__getattr__("put")(key, data, **condition)

    store: Any = Overtaken(rig.store)
    build(rig, store)
    assert store.written[lease] == 1
    assert not store.written[KEYS.summary]
    assert not store.written[KEYS.manifest]
    assert bytes_of(rig.store) == alone
