"""Requests to the bucket are timed, and counted by what came of them."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from weft_common.errors import NotFoundError, UnavailableError
from weft_common.metrics import REGISTRY
from weft_store import open_store
from weft_store.adapters.memory import MemoryObjectStore
from weft_store.metered import MeteredObjectStore
from weft_store.port import ObjectInfo


def count(op: str, code: str = "OK") -> float:
    return REGISTRY.get_sample_value("weft_s3_request_seconds_count", {"op": op, "code": code}) or 0.0


def seconds(op: str) -> float:
    return REGISTRY.get_sample_value("weft_s3_request_seconds_sum", {"op": op, "code": "OK"}) or 0.0


class BrokenStore(MemoryObjectStore):
    """A bucket whose listings break off, and that fails in unforeseen ways."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        yield from super().list(prefix)
        raise UnavailableError("the bucket does not answer")

    def info(self, key: str) -> ObjectInfo:
        raise RuntimeError("a defect")


def test_every_request_is_counted_by_outcome(tmp_path: Path) -> None:
    """Each kind of request counts once, under its own name, and presigning asks nobody."""
    ops = ("put", "get", "info", "list", "put_file", "get_file", "delete")
    before = {op: count(op) for op in ops}
    store = open_store(f"file://{tmp_path}/bucket")
    store.put("a", b"1")
    store.get("a")
    store.get_with_info("a")
    store.info("a")
    assert len(list(store.list(""))) == 1
    (tmp_path / "file").write_bytes(b"2")
    store.put_file("b", tmp_path / "file")
    store.get_to_file("b", tmp_path / "copy")
    store.delete("b")
    store.presign_get("a", 60)
    assert {op: count(op) - before[op] for op in ops} == dict.fromkeys(ops, 1) | {"get": 2}


def test_failures_are_counted_by_code() -> None:
    """An error passes through as it is and counts under its code, a defect as UNKNOWN."""
    store = MeteredObjectStore(BrokenStore())
    missing, defect, listing = count("get", "NOT_FOUND"), count("info", "UNKNOWN"), count("list", "UNAVAILABLE")
    with pytest.raises(NotFoundError):
        store.get("a")
    with pytest.raises(RuntimeError):
        store.info("a")
    store.put("a", b"1")
    found = store.list("")
    assert next(found).key == "a"
    with pytest.raises(UnavailableError):
        next(found)
    assert count("get", "NOT_FOUND") == missing + 1
    assert count("info", "UNKNOWN") == defect + 1
    assert count("list", "UNAVAILABLE") == listing + 1


def test_a_listing_is_not_charged_for_its_reader() -> None:
    """What the reader does between two entries is not the bucket's time; a walk that is left counts too."""
    store = MeteredObjectStore(MemoryObjectStore())
    for key in ("a", "b", "c"):
        store.put(key, b"")
    before, walks = seconds("list"), count("list")
    for _ in store.list(""):
        time.sleep(0.05)
    walk = store.list("")
    next(walk)
    walk.close()  # type: ignore[attr-defined]  # a generator
    assert seconds("list") - before < 0.05
    assert count("list") == walks + 2
