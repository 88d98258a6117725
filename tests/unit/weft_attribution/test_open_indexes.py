"""Which indexes stay open: as many as their bytes allow."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from weft_attribution.core.feature_index import open_indexes
from weft_attribution.core.feature_index.open_indexes import OpenIndexes
from weft_store import ObjectStore, open_store


class Opened:
    """An index of ten bytes, which may come to take more."""

    def __init__(self, store: ObjectStore, manifest: Mapping[str, Any]) -> None:
        self.num_bytes = 10


@pytest.fixture
def indexes(monkeypatch: pytest.MonkeyPatch) -> OpenIndexes:
    store = open_store("memory://")
    for name in "abcd":
        store.put(f"transcoders/{name}/manifest.json", json.dumps({}).encode())
    monkeypatch.setattr(open_indexes, "OpenIndex", Opened)
    indexes = OpenIndexes(store, memory_bytes=30)
    request = {"index_id": "one"}
    monkeypatch.setattr(
        indexes, "manifests", lambda name: [{"request": {**request, "transcoder": name}, "create_s": 1.0}]
    )
    return indexes


def test_small_indexes_stay_open_beside_each_other(indexes: OpenIndexes) -> None:
    """Three that fit are opened once each; a fourth has the one asked for longest ago closed."""
    first = {name: indexes.open(name) for name in "abc"}
    assert all(indexes.open(name) is first[name] for name in "abc")
    indexes.open("d")
    assert [indexes.open(name) is first[name] for name in "bc"] == [True, True]
    assert indexes.open("a") is not first["a"]


def test_index_that_grows_has_others_closed(indexes: OpenIndexes) -> None:
    """What is asked of an index adds to it; the one that is asked for stays, however large."""
    first: Any = {name: indexes.open(name) for name in "ab"}
    first["a"].num_bytes = 100
    assert indexes.open("a") is first["a"]
    assert indexes.open("b") is not first["b"]
