"""What taking a snapshot reads: only what is new, a few documents at a time, and in portions where very much is."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from weft_cache.core import layout, listing, snapshots
from weft_cache.core.records import Split
from weft_common.errors import FailedPreconditionError, NotFoundError
from weft_store import open_store
from weft_store.documents import encode_json


@pytest.fixture
def filled(house, spec) -> Any:
    """An open dataset `a` with four shards to train on and one held out."""
    house.catalog.create("a", spec())
    for index in range(4):
        house.add("a", index, 20 + index)
    house.add("a", 4, 20, Split.HELD_OUT)
    return house


def _reads(house: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the commit records and shard statistics that are read from here on."""
    reads: list[str] = []
    get = house.store.get_with_info

    def counted(key: str) -> Any:
        if key.startswith(layout.commits_prefix("a")):
            reads.append(key.removeprefix(layout.commits_prefix("a")).partition("-")[0].removesuffix(".json"))
        return get(key)

    monkeypatch.setattr(house.store, "get_with_info", counted)
    return reads


def test_snapshot_reads_only_what_is_new(filled, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new shard's record and statistics; where nothing came, no commit at all."""
    filled.snapshots.take("a")
    filled.add("a", 5, 30)
    reads = _reads(filled, monkeypatch)
    assert filled.snapshots.take("a").snapshot == 2
    assert reads == ["5", "5"]
    reads.clear()
    assert filled.snapshots.take("a").snapshot == 2
    assert reads == []


def test_description_of_an_open_dataset_reads_only_what_no_snapshot_lists(
    filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What CreateRun and SealDataset look at is as whole as before."""
    filled.snapshots.take("a")
    filled.add("a", 5, 30)
    reads = _reads(filled, monkeypatch)
    assert [shard.index for shard in filled.catalog.get("a").shards] == [0, 1, 2, 3, 4, 5]
    assert reads == ["5"]


def test_snapshot_of_another_dataset_of_the_name_is_not_believed(filled, spec, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that a deletion left behind says nothing of the dataset that is there now."""
    filled.snapshots.take("a")
    left = filled.store.get(layout.snapshot_key("a", 1))
    filled.deletion.delete("a")
    filled.catalog.create("a", spec())
    filled.store.put(layout.snapshot_key("a", 1), left)
    filled.add("a", 0, 99)
    assert [shard.num_tokens for shard in filled.catalog.get("a").shards] == [99]


def test_very_much_that_is_new_is_taken_in_portions(filled, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a snapshot with all of the one before; a call that dies in the middle is gone on from where it was."""
    monkeypatch.setattr(snapshots, "_MOST_NEW_SHARDS", 2)
    write, calls = filled.snapshots._write, []

    def dying(*args: Any) -> Any:
        calls.append(args[2])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write(*args)

    monkeypatch.setattr(filled.snapshots, "_write", dying)
    with pytest.raises(KeyboardInterrupt):
        filled.snapshots.take("a")
    reads = _reads(filled, monkeypatch)
    taken = filled.snapshots.take("a")
    assert not {"0", "1"} & set(reads)
    assert calls == [1, 2, 2, 3]
    listed = [[shard.index for shard in filled.snapshots.get("a", number).shards] for number in (1, 2, 3)]
    assert listed == [[0, 1], [0, 1, 2, 3], [0, 1, 2, 3, 4]]
    assert (taken.snapshot, taken.num_tokens(Split.TRAIN)) == (3, 86)
    assert filled.snapshots.statistics(taken)[0].input.num_tokens == 86


def test_seal_merges_the_same_statistics_from_one_reading(filled, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over both splits they are those of the two splits' shards together, each of which is read once."""
    parts = [filled.upload("a", index, 20 + index % 4)[2] for index in range(5)]
    reads = _reads(filled, monkeypatch)
    sealed = filled.sealing.seal("a", 5)
    assert sorted(reads) == sorted(2 * ["0", "1", "2", "3", "4"])
    rows = np.concatenate([part["output"][1] for part in parts]).astype(np.float64)
    found = filled.sealing.all_statistics(sealed)[1].output
    assert found.num_tokens == len(rows) == 106
    np.testing.assert_allclose(found.mean, rows.mean(axis=0), atol=1e-12)


def test_documents_are_read_a_few_at_a_time() -> None:
    """In order; no more are asked for ahead of whoever takes them than there are threads."""
    store, asked = open_store("memory://"), []
    for number in range(60):
        store.put(f"documents/{number}", encode_json({"number": number}))

    def keys() -> Iterator[str]:
        for number in range(60):
            asked.append(number)
            yield f"documents/{number}"

    found = listing.read_all(store, keys())
    taken = [next(found)["number"] for _ in range(3)]
    assert len(asked) <= len(taken) + listing._READ_THREADS
    assert taken + [document["number"] for document in found] == list(range(60))
    with pytest.raises(NotFoundError):
        list(listing.read_all(store, ["documents/1", "documents/none"]))


def test_plan_of_a_dataset_that_was_made_anew_is_refused(filled) -> None:
    """A reader that knows when its dataset was made is not given another's row groups."""
    made = filled.catalog.get("a").create_time
    taken = filled.snapshots.take("a").snapshot
    which: dict[str, Any] = {"rank": 0, "world_size": 1, "epoch": 0, "seed": 0, "snapshot": taken}
    assert filled.reading.plan("a", Split.TRAIN, create_time=made, **which).num_tokens == 86
    with pytest.raises(FailedPreconditionError, match="made anew"):
        filled.reading.plan("a", Split.TRAIN, create_time=made - timedelta(seconds=1), **which)
