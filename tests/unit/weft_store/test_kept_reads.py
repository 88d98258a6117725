"""Ranges that were read before come from the folder, within its size, and never wrongly."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from weft_common.errors import NotFoundError
from weft_store import open_store
from weft_store.kept import KeptReads

_OBJECT = bytes(range(256)) * 8
_DIGEST_BYTES = 32


class _Counted:
    """A bucket that knows what it was asked."""

    def __init__(self) -> None:
        self._store = open_store("memory://")
        self._store.put("a", _OBJECT)
        self.asked: list[tuple[int, int | None]] = []

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        self.asked.append((offset, length))
        return self._store.get(key, offset=offset, length=length)


def _on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_kept_range_is_read_once(tmp_path: Path) -> None:
    """The second read of a range asks nobody; what has no end, and other ranges, are asked for."""
    store = _Counted()
    reads = KeptReads(store, tmp_path, 10_000)
    for _ in range(3):
        assert reads.get("a", offset=5, length=100) == _OBJECT[5:105]
    assert reads.get("a", offset=5, length=101) == _OBJECT[5:106]
    assert reads.get("a", offset=9) == reads.get("a", offset=9) == _OBJECT[9:]
    assert store.asked == [(5, 100), (5, 101), (9, None), (9, None)]


def test_longest_unused_range_goes_first(tmp_path: Path) -> None:
    """With room for two, the one that was used longest ago is asked for again."""
    store = _Counted()
    reads = KeptReads(store, tmp_path, 2 * (100 + _DIGEST_BYTES))
    for offset in (0, 100, 0, 200, 0, 100):
        reads.get("a", offset=offset, length=100)
    assert [offset for offset, _ in store.asked] == [0, 100, 200, 100]


def test_range_larger_than_the_folder_is_not_kept(tmp_path: Path) -> None:
    """It is passed on, and pushes nothing out."""
    store = _Counted()
    reads = KeptReads(store, tmp_path, 200)
    reads.get("a", length=100)
    assert reads.get("a", length=2000) == _OBJECT[:2000]
    reads.get("a", length=100)
    assert store.asked == [(0, 100), (0, 2000)]


@settings(max_examples=40, deadline=None)
@given(
    reads=st.lists(st.tuples(st.integers(0, 2100), st.integers(0, 600)), max_size=30), most_bytes=st.integers(0, 2000)
)
def test_reads_are_those_of_the_store_within_the_size(
    tmp_path_factory: pytest.TempPathFactory, reads: list[tuple[int, int]], most_bytes: int
) -> None:
    """Whatever is read in whatever order, bytes are the object's and the folder never exceeds its size."""
    folder = tmp_path_factory.mktemp("kept")
    kept = KeptReads(_Counted(), folder, most_bytes)
    for offset, length in reads:
        assert kept.get("a", offset=offset, length=length) == _OBJECT[offset : offset + length]
        assert _on_disk(folder) == kept.size_bytes <= most_bytes


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_damaged_file_is_read_from_the_bucket(tmp_path: Path, damage: str) -> None:
    """A file that is not what was written is asked for anew, and kept anew."""
    store = _Counted()
    reads = KeptReads(store, tmp_path, 10_000)
    reads.get("a", length=100)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"flip": content[:-1] + b"x", "cut": content[:-1], "empty": b""}[damage])
    for _ in range(2):
        assert reads.get("a", length=100) == _OBJECT[:100]
    assert len(store.asked) == 2


def test_disk_that_refuses_costs_no_read(tmp_path: Path) -> None:
    """Without a folder to write to, everything is read from the bucket."""
    store = _Counted()
    reads = KeptReads(store, tmp_path / "missing", 10_000)
    for _ in range(2):
        assert reads.get("a", length=10) == _OBJECT[:10]
    assert (len(store.asked), reads.size_bytes) == (2, 0)


def test_missing_object_is_not_found(tmp_path: Path) -> None:
    """What the bucket raises comes through."""
    with pytest.raises(NotFoundError):
        KeptReads(_Counted(), tmp_path, 100).get("b", length=10)


def test_threads_share_a_folder(tmp_path: Path) -> None:
    """Many threads over few ranges in little room: right bytes, and the folder's size is what is counted."""
    kept = KeptReads(_Counted(), tmp_path, 700)

    def read(number: int) -> None:
        offset = 37 * (number % 11)
        assert kept.get("a", offset=offset, length=150) == _OBJECT[offset : offset + 150]

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(read, range(400)))
    assert _on_disk(tmp_path) == kept.size_bytes <= 700
