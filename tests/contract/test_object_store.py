"""One suite over every adapter of the object store; S3 against a real MinIO server (marker `s3`)."""

import hashlib
import os
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from weft_common.errors import (
    AlreadyExistsError,
    ConflictError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from weft_store import ObjectStore, open_store
from weft_store.documents import create_json, list_ids, read_json, update_json


@pytest.fixture(params=["file", "memory", pytest.param("s3", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "file":
        return open_store(f"file://{tmp_path}/bucket")
    if request.param == "memory":
        return open_store("memory://")
    make: Callable[[], ObjectStore] = request.getfixturevalue("minio_store")
    return make()


def test_store_keeps_the_protocol(store: ObjectStore) -> None:
    """An adapter has every method of the Protocol."""
    assert isinstance(store, ObjectStore)


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 8193], ids=["empty", "one byte", "over a mebibyte"])
def test_put_gives_back_the_same_bytes(store: ObjectStore, data: bytes) -> None:
    """What was put is read, whole and described."""
    written = store.put("a/b.bin", data)
    read, info = store.get_with_info("a/b.bin")
    assert read == data == store.get("a/b.bin")
    assert info.etag == written.etag == store.info("a/b.bin").etag != ""
    assert (info.key, info.size_bytes) == ("a/b.bin", len(data))
    assert abs(info.modified_s - os.path.getmtime("/proc/self")) < 86400


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (0, 3, b"012"),
        (4, None, b"456789"),
        (8, 10, b"89"),
        (10, 4, b""),
        (99, None, b""),
        (3, 0, b""),
        (0, 1 << 60, b"0123456789"),
    ],
)
def test_get_reads_ranges(store: ObjectStore, offset: int, length: int | None, expected: bytes) -> None:
    """A range gives what there is of it."""
    store.put("digits", b"0123456789")
    assert store.get("digits", offset=offset, length=length) == expected


@pytest.mark.parametrize(("offset", "length"), [(-1, None), (0, -1)])
def test_get_refuses_negative_ranges(store: ObjectStore, offset: int, length: int | None) -> None:
    """A negative offset or length is the caller's mistake."""
    store.put("digits", b"0123456789")
    with pytest.raises(InvalidArgumentError):
        store.get("digits", offset=offset, length=length)


def test_missing_objects_are_not_found(store: ObjectStore, tmp_path: Path) -> None:
    """Every way to read says that there is nothing."""
    store.put("folder/object", b"x")
    for key in ("nothing", "folder", "folder/object/below"):
        for read in (store.get, store.get_with_info, store.info):
            with pytest.raises(NotFoundError, match=key):
                read(key)
    with pytest.raises(NotFoundError):
        store.get("nothing", offset=3, length=0)
    with pytest.raises(NotFoundError):
        store.get_to_file("nothing", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/a",
        "a/",
        "a//b",
        "../a",
        "a/../b",
        "a/./b",
        ".hidden",
        "a/.b",
        "a b",
        "ä",
        "a\0",
        "a\n",
        "a\\b",
        "x" * 1025,
    ],
)
def test_malformed_keys_are_refused(store: ObjectStore, key: str, tmp_path: Path) -> None:
    """No operation takes a key that could leave the bucket or differ between adapters."""
    source = tmp_path / "source"
    source.write_bytes(b"x")
    for call in (
        lambda: store.get(key),
        lambda: store.get_with_info(key),
        lambda: store.info(key),
        lambda: store.put(key, b"x"),
        lambda: store.put_file(key, source),
        lambda: store.get_to_file(key, tmp_path / "out"),
        lambda: store.delete(key),
        lambda: store.presign_get(key, 60),
        lambda: store.presign_put(key, 60),
    ):
        with pytest.raises(InvalidArgumentError):
            call()


def test_put_overwrites(store: ObjectStore) -> None:
    """Without a condition the last writer wins, and the version changes."""
    first = store.put("key", b"one")
    second = store.put("key", b"two")
    assert store.get("key") == b"two"
    assert first.etag != second.etag


def test_put_if_absent_writes_once(store: ObjectStore) -> None:
    """The second creator is refused and changes nothing."""
    store.put("key", b"one", if_absent=True)
    with pytest.raises(AlreadyExistsError, match="key"):
        store.put("key", b"two", if_absent=True)
    assert store.get("key") == b"one"


def test_put_if_match_writes_over_that_version_only(store: ObjectStore) -> None:
    """A stale version is refused, the present one is taken, and nothing matches what is not there."""
    first = store.put("key", b"one")
    second = store.put("key", b"two", if_match=first.etag)
    with pytest.raises(ConflictError, match="key"):
        store.put("key", b"three", if_match=first.etag)
    assert store.get("key") == b"two"
    store.put("key", b"three", if_match=second.etag)
    store.delete("key")
    with pytest.raises(ConflictError):
        store.put("key", b"four", if_match=second.etag)
    with pytest.raises(NotFoundError):
        store.info("key")


def test_put_if_match_knows_versions_of_large_objects(store: ObjectStore) -> None:
    """Two large objects of one size written in a row are two versions."""
    data = bytes(3 << 20)
    first = store.put("key", data + b"1")
    second = store.put("key", data + b"2")
    with pytest.raises(ConflictError):
        store.put("key", b"three", if_match=first.etag)
    store.put("key", b"three", if_match=second.etag)


def test_put_refuses_two_conditions(store: ObjectStore) -> None:
    """Absent and of some version cannot both hold."""
    with pytest.raises(InvalidArgumentError):
        store.put("key", b"x", if_absent=True, if_match="y")


@pytest.mark.parametrize(("first", "second"), [("a/b", "a/b/c"), ("a/b/c", "a/b"), ("a/b/c", "a")])
@pytest.mark.parametrize("url", ["file://{}/bucket", "memory://"])
def test_put_refuses_keys_inside_each_other(url: str, tmp_path: Path, first: str, second: str) -> None:
    """A folder of files cannot hold both of two such keys; memory refuses too, so that tests find it. S3 takes both."""
    store = open_store(url.format(tmp_path))
    store.put(first, b"x")
    with pytest.raises(FailedPreconditionError):
        store.put(second, b"y")
    assert [info.key for info in store.list("")] == [first]


def test_racing_creators_have_one_winner(store: ObjectStore) -> None:
    """Of many threads that create one key, exactly one succeeds, and its bytes stay."""
    barrier = threading.Barrier(8)
    won: list[int] = []

    def create(number: int) -> None:
        barrier.wait()
        try:
            store.put("lease", b"%d" % number, if_absent=True)
        except AlreadyExistsError:
            return
        won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.get("lease") == b"%d" % won[0]


def test_racing_updates_lose_nothing(store: ObjectStore) -> None:
    """Compare-and-swap from several threads counts every increment."""
    create_json(store, "counter.json", {"count": 0})

    def count() -> None:
        for _ in range(10):
            update_json(store, "counter.json", lambda old: {"count": old["count"] + 1}, attempts=100)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_json(store, "counter.json")[0] == {"count": 40}


def test_list_walks_keys_in_order(store: ObjectStore) -> None:
    """Keys come in the order of their bytes, where '-' and '.' stand before '/', and prefixes need not be folders."""
    keys = ["a-b", "a.b", "a/b", "a/b-c", "a/c/d", "a0", "ab/c", "b"]
    for key in reversed(keys):
        store.put(key, key.encode())
    assert [info.key for info in store.list("")] == keys
    assert [info.key for info in store.list("a/")] == ["a/b", "a/b-c", "a/c/d"]
    assert [info.key for info in store.list("a/b")] == ["a/b", "a/b-c"]
    assert [info.key for info in store.list("a/c/")] == ["a/c/d"]
    assert [info.key for info in store.list("nothing/")] == []
    found = next(store.list("ab"))
    assert (found.key, found.size_bytes, found.etag) == ("ab/c", 4, "")
    assert found.modified_s == pytest.approx(store.info("ab/c").modified_s, abs=1)


def test_list_refuses_malformed_prefixes(store: ObjectStore) -> None:
    """A prefix that no key can have is a mistake, not an empty listing."""
    for prefix in ("/", "../", "a//", ".weft"):
        with pytest.raises(InvalidArgumentError):
            list(store.list(prefix))
    with pytest.raises(InvalidArgumentError):
        list(store.list_folders("runs"))


def test_list_folders_names_what_lies_below(store: ObjectStore) -> None:
    """Folders are named once, without what lies deeper, without objects, and without those that are empty by now."""
    for key in ("runs/b/run.json", "runs/a/run.json", "runs/a/x/y", "runs/file", "runs/gone/x", "other/c/d"):
        store.put(key, b"{}")
    store.delete("runs/gone/x")
    assert list(store.list_folders("runs/")) == ["a", "b"]
    assert list(store.list_folders("")) == ["other", "runs"]
    assert list(store.list_folders("nothing/")) == []


def test_list_ids_reads_folders_and_files(store: ObjectStore) -> None:
    """Ids stand between prefix and suffix, at one level."""
    for key in (
        "runs/b/run.json",
        "runs/a/run.json",
        "runs/c/other.json",
        "graphs/g.json",
        "graphs/h/x.json",
        "graphs/i.txt",
    ):
        store.put(key, b"{}")
    assert list(list_ids(store, "runs/", "/run.json")) == ["a", "b"]
    assert list(list_ids(store, "graphs/", ".json")) == ["g"]


def test_delete_is_idempotent(store: ObjectStore) -> None:
    """An object is gone after its deletion, and deleting it again is no error, nor is deleting a folder."""
    store.put("a/b", b"x")
    store.delete("a")
    assert store.get("a/b") == b"x"
    store.delete("a/b")
    store.delete("a/b")
    store.delete("a/b/c")
    with pytest.raises(NotFoundError):
        store.get("a/b")
    store.put("a/b", b"y", if_absent=True)


def test_files_go_in_and_out(store: ObjectStore, tmp_path: Path) -> None:
    """A file becomes an object and a file again, over what stood there."""
    data = os.urandom(6 << 20)
    (tmp_path / "in").write_bytes(data)
    (tmp_path / "out").write_bytes(b"old")
    store.put("blob", b"old")
    written = store.put_file("blob", tmp_path / "in")
    read = store.get_to_file("blob", tmp_path / "out")
    assert hashlib.sha256((tmp_path / "out").read_bytes()).digest() == hashlib.sha256(data).digest()
    assert written.size_bytes == read.size_bytes == len(data)
    assert written.etag == read.etag == store.info("blob").etag
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["in", "out"]


def test_presigned_urls_work_without_credentials(store: ObjectStore) -> None:
    """A URL, where there is one, writes and reads the object; a bucket without URLs says so by an empty one."""
    put, get = store.presign_put("signed/object", 60), store.presign_get("signed/object", 60)
    assert bool(put) == bool(get)
    if put:
        request = urllib.request.Request(put, data=b"through the URL", method="PUT")
        assert urllib.request.urlopen(request, timeout=10).status == 200
        assert urllib.request.urlopen(get, timeout=10).read() == b"through the URL" == store.get("signed/object")
