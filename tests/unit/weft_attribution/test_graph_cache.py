"""The cache of graphs' rows under any order of making, finding and deleting, with deaths in between."""

from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interleaving import Program, take_turns

from weft_attribution.core.graph_cache import GraphCache
from weft_attribution.core.graphs import Graphs
from weft_attribution.core.records import GraphRequest, GraphSettings, graph_key, request_key, rows_key
from weft_common.errors import NotFoundError
from weft_store import ObjectStore
from weft_store.adapters.memory import MemoryObjectStore
from weft_store.documents import create_json, encode_json

KEY = "graph-cache/0123/"
WHOLE: dict[str, Any] = {"statistics": {}, "json": {}, "tokens": [], "logits": [], "probabilities": []}


def asked(graph_id: str, create_s: float = 1.0) -> GraphRequest:
    return GraphRequest(graph_id, GraphSettings("m", "t", "p"), create_s)


def make(store: ObjectStore, graph_id: str) -> None:
    """Write what a build writes, in its order."""
    request = asked(graph_id)
    create_json(store, request_key(graph_id), request.to_json())
    GraphCache(store).note(KEY, request)
    store.put(graph_key(graph_id), encode_json({"rows": graph_id, **WHOLE}))


def delete(store: ObjectStore, graph_id: str) -> None:
    """Delete as the service does; it needs neither model nor runner."""
    graphs = Graphs(store, cast(Any, None), cast(Any, None), max_prompt_tokens=1, max_features=1)
    try:
        graphs.delete(graph_id)
    except NotFoundError:
        return


@given(
    turns=st.lists(st.integers(0, 3), max_size=60),
    kills=st.lists(st.tuples(st.integers(0, 59), st.integers(1, 2)), max_size=2),
)
@settings(max_examples=60, deadline=None)
def test_entries_of_others_stay_and_deleted_ones_go(turns: list[int], kills: list[tuple[int, int]]) -> None:
    """One graph is made while another is deleted twice and somebody looks; a deletion that died is done again."""
    store = MemoryObjectStore()
    make(store, "old")
    make(store, "stays")
    seen: list[dict[str, Any] | None] = []
    programs = [
        Program(store, lambda bucket: make(bucket, "new")),
        Program(store, lambda bucket: delete(bucket, "old")),
        Program(store, lambda bucket: delete(bucket, "old")),
        Program(store, lambda bucket: seen.append(GraphCache(bucket).find(KEY))),
    ]

    def check() -> None:
        found = GraphCache(store).find(KEY)
        assert found is not None
        assert found["rows"] == found["graph_id"]

    take_turns(programs, turns, kills, check)
    assert len(seen) == 1
    delete(store, "old")
    assert [info.key for info in store.list("graph-cache/")] == [f"{KEY}new.json", f"{KEY}stays.json"]
    assert not [info.key for info in store.list("graphs/old")]
    for graph_id in ("new", "stays"):
        delete(store, graph_id)
    assert GraphCache(store).find(KEY) is None
    assert not list(store.list(""))


def test_graph_of_other_rows_or_another_time_is_not_found() -> None:
    """An id that was deleted and stands for a later graph has no rows of the earlier; a rebuild moves its entry."""
    store = MemoryObjectStore()
    make(store, "g")
    store.put(request_key("g"), encode_json(asked("g", 2.0).to_json()))
    cache = GraphCache(store)
    assert cache.find(KEY) is None
    cache.note("graph-cache/4567/", asked("g", 2.0))
    found = cache.find("graph-cache/4567/")
    assert found is not None
    assert found["graph_id"] == "g"
    assert [info.key for info in store.list("graph-cache/")] == ["graph-cache/4567/g.json"]


def test_cache_looks_past_entries_that_are_not_complete() -> None:
    """A graph that is being made, or whose maker died, hides none that is done."""
    store = MemoryObjectStore()
    for number in range(5):
        GraphCache(store).note(KEY, asked(f"a{number}"))
    make(store, "done")
    found = GraphCache(store).find(KEY)
    assert found is not None
    assert found["graph_id"] == "done"


@pytest.mark.parametrize(
    ("key", "damage"),
    [
        (f"{KEY}a.json", b"{"),
        (f"{KEY}a.json", b"[]"),
        (f"{KEY}a.json", b"{}"),
        (f"{KEY}a.json", b'{"graph_id": 7, "create_s": 1.0}'),
        (request_key("a"), b"{"),
        (request_key("a"), b'{"graph_id": "a"}'),
        (graph_key("a"), b"\xff"),
        (graph_key("a"), encode_json({**WHOLE, "statistics": 1})),
    ],
)
def test_damaged_entry_hides_none_that_is_whole(key: str, damage: bytes) -> None:
    """It only saves work: it is passed over, and where it is the only one the graph is made anew."""
    store = MemoryObjectStore()
    make(store, "a")
    store.put(key, damage)
    assert GraphCache(store).find(KEY) is None
    make(store, "b")
    found = GraphCache(store).find(KEY)
    assert found is not None
    assert found["graph_id"] == "b"


@pytest.mark.parametrize("damage", [b"{", b"{}", b'{"made_of": "../x"}'])
def test_graph_whose_place_in_the_cache_is_damaged_can_be_made_and_deleted(damage: bytes) -> None:
    """What says where its entry is was overwritten: another note stands, and a deletion ends."""
    store = MemoryObjectStore()
    make(store, "a")
    store.put(rows_key("a"), damage)
    GraphCache(store).note("graph-cache/4567/", asked("a"))
    assert GraphCache(store).find("graph-cache/4567/") is not None
    store.put(rows_key("a"), damage)
    delete(store, "a")
    assert GraphCache(store).find(KEY) is None
    assert not list(store.list("graphs/"))
