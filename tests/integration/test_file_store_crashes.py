"""The file store across processes: killed writers leave whole objects, racing ones lose no update."""

import hashlib
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from weft_common.errors import AlreadyExistsError, StorageFullError
from weft_store import open_store
from weft_store.adapters.file import FileObjectStore
from weft_store.documents import create_json, read_json, update_json

_SPAWN = multiprocessing.get_context("spawn")
_KEYS = ("a/one", "a/two", "b/three")


def _payload(number: int) -> bytes:
    """Make an object that names its own hash, of a length that differs from the next."""
    body = bytes([number % 251]) * (200_000 + 977 * (number % 50))
    return hashlib.sha256(body).digest() + body


def _write_for_ever(root: str) -> None:
    store = open_store(f"file://{root}")
    number = 0
    while True:
        store.put(_KEYS[number % 3], _payload(number))
        number += 1


def _increment(root: str, times: int) -> None:
    store = open_store(f"file://{root}")
    for _ in range(times):
        update_json(store, "counter.json", lambda old: {"count": old["count"] + 1}, attempts=1000)


def _claim(root: str, owner: str, leases: int) -> None:
    store = open_store(f"file://{root}")
    for lease in range(leases):
        try:
            store.put(f"leases/{lease}", owner.encode(), if_absent=True)
        except AlreadyExistsError:
            continue
        store.put(f"won/{owner}/{lease}", b"")


def test_a_killed_writer_leaves_whole_objects(tmp_path: Path) -> None:
    """After kill -9 at twelve random moments every object is whole, listings show nothing else, and locks are free."""
    root = tmp_path / "bucket"
    store = open_store(f"file://{root}")
    chance = random.Random(3)
    for _ in range(12):
        writer = _SPAWN.Process(target=_write_for_ever, args=(str(root),))
        before = {info.key: info.modified_s for info in store.list("")}
        writer.start()
        end = time.monotonic() + 30
        while {info.key: info.modified_s for info in store.list("")} == before and time.monotonic() < end:
            time.sleep(0.005)
        time.sleep(chance.random() * 0.03)
        os.kill(writer.pid or 0, signal.SIGKILL)
        writer.join()
        found = list(store.list(""))
        assert found
        for info in found:
            assert info.key in _KEYS
            data = store.get(info.key)
            assert hashlib.sha256(data[32:]).digest() == data[:32]
            assert len(data) == info.size_bytes
    store.put(_KEYS[0], b"the lock is free")


def test_scratch_of_the_dead_is_removed_an_hour_later(tmp_path: Path) -> None:
    """Opening the bucket removes what was left long ago, and nothing that may still be written."""
    open_store(f"file://{tmp_path}")
    old, fresh = tmp_path / ".weft" / "scratch" / "1-old.tmp", tmp_path / ".weft" / "scratch" / "1-new.tmp"
    old.write_bytes(b"x")
    fresh.write_bytes(b"x")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    assert list(open_store(f"file://{tmp_path}").list("")) == []
    assert (old.exists(), fresh.exists()) == (False, True)


def test_updates_from_many_processes_lose_nothing(tmp_path: Path) -> None:
    """Compare-and-swap by three processes counts every increment."""
    store = open_store(f"file://{tmp_path}")
    create_json(store, "counter.json", {"count": 0})
    workers = [_SPAWN.Process(target=_increment, args=(str(tmp_path), 40)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert read_json(store, "counter.json")[0] == {"count": 120}


def test_every_lease_is_claimed_by_one_process(tmp_path: Path) -> None:
    """Three processes that create the same keys share them without overlap."""
    workers = [_SPAWN.Process(target=_claim, args=(str(tmp_path), name, 60)) for name in "abc"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    store = open_store(f"file://{tmp_path}")
    won = sorted(int(info.key.rsplit("/", 1)[1]) for info in store.list("won/"))
    assert won == list(range(60))


def test_a_full_disk_is_said_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk takes no more, the old object stays, no scratch is left, and the error says what to do."""
    store = FileObjectStore(tmp_path)
    store.put("a", b"old")

    def refuse(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageFullError, match="free some"):
        store.put("a", b"new")
    monkeypatch.undo()
    assert store.get("a") == b"old"
    assert list((tmp_path / ".weft" / "scratch").iterdir()) == []
