"""Shards join a dataset once, and only as what they are."""

from dataclasses import replace

import pytest

from weft_cache.core import layout
from weft_cache.core.records import Split
from weft_common.errors import DataLossError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from weft_store.documents import read_json


def test_commit_gives_the_first_one_back(house, spec) -> None:
    """Two replicas harvest the same lease: the first commit stays, the second learns about it, its upload goes."""
    house.catalog.create("a", spec())
    first, first_encoded, _ = house.upload("a", 0, seed=1)
    second, second_encoded, _ = house.upload("a", 0, seed=2)
    assert first.key != second.key
    assert house.commits.commit("a", first, first_encoded.statistics) == first
    assert house.commits.commit("a", second, second_encoded.statistics) == first
    assert house.commits.begin("a", 0).committed == first
    assert house.catalog.get("a").shards == (first,)


def test_commits_that_meet_agree_on_one(house, spec, monkeypatch) -> None:
    """A commit that lands while another is being checked wins, and the other gets it back."""
    house.catalog.create("a", spec())
    first, first_encoded, _ = house.upload("a", 0, seed=1)
    second, second_encoded, _ = house.upload("a", 0, seed=2)
    check = house.commits._check_object

    def slow(wanted, shard) -> None:
        monkeypatch.setattr(house.commits, "_check_object", check)
        check(wanted, shard)
        house.commits.commit("a", second, second_encoded.statistics)

    monkeypatch.setattr(house.commits, "_check_object", slow)
    assert house.commits.commit("a", first, first_encoded.statistics) == second
    assert house.sealing.seal("a", 1).shards == (second,)
    assert house.reading.verify("a").problems == ()


def test_commit_that_meets_the_seal_is_taken_back(house, spec, monkeypatch) -> None:
    """A surplus shard that arrives while the dataset is sealed is refused and leaves nothing."""
    house.catalog.create("a", spec())
    kept, _ = house.add("a", 0)
    late, encoded, _ = house.upload("a", 1)
    check = house.commits._check_object

    def slow(wanted, shard) -> None:
        check(wanted, shard)
        house.sealing.seal("a", 1)

    monkeypatch.setattr(house.commits, "_check_object", slow)
    with pytest.raises(FailedPreconditionError, match="not taken"):
        house.commits.commit("a", late, encoded.statistics)
    assert house.catalog.get("a").shards == (kept,)
    assert [item.key for item in house.store.list(layout.commits_prefix("a"))] == []


def test_commit_that_meets_a_delete_leaves_nothing(house, spec, monkeypatch) -> None:
    """A shard that arrives while the dataset is deleted does not come back with the next one of that name."""
    house.catalog.create("a", spec())
    late, encoded, _ = house.upload("a", 0)
    check = house.commits._check_object

    def slow(wanted, shard) -> None:
        check(wanted, shard)
        house.deletion.delete("a")

    monkeypatch.setattr(house.commits, "_check_object", slow)
    with pytest.raises(FailedPreconditionError, match="not taken"):
        house.commits.commit("a", late, encoded.statistics)
    assert list(house.store.list("")) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": "0" * 64}, "SHA-256"),
        ({"size_bytes": 17}, "has .* bytes, expected 17"),
        ({"row_group_tokens": 8}, "row_group_tokens 16, the request says 8"),
    ],
)
def test_commit_refuses_an_object_that_is_not_as_announced(house, spec, changes, message) -> None:
    """What lies in the bucket decides: another hash, size or form is DATA_LOSS, and counted."""
    house.catalog.create("a", spec())
    record, encoded, _ = house.upload("a", 0)
    with pytest.raises(DataLossError, match=message):
        house.commits.commit("a", replace(record, **changes), encoded.statistics)
    assert house.counted.corrupted == 1
    assert house.catalog.get("a").shards == ()


def test_commit_refuses_a_shard_of_another_codec(house, spec) -> None:
    """A valid shard that does not fit the dataset's spec is DATA_LOSS."""
    house.catalog.create("a", spec(codec="uniform", target_fvu=1e-3))
    record, encoded, _ = house.upload("a", 0)
    with pytest.raises(DataLossError, match="codec 'bf16', the spec says 'uniform'"):
        house.commits.commit("a", record, encoded.statistics)


def test_commit_refuses_an_object_that_is_missing(house, spec) -> None:
    """A shard that was never put is DATA_LOSS."""
    house.catalog.create("a", spec())
    record, encoded, _ = house.upload("a", 0)
    house.store.delete(record.key)
    with pytest.raises(DataLossError, match="not in the bucket"):
        house.commits.commit("a", record, encoded.statistics)


def test_commit_refuses_a_key_of_another_shard(house, spec) -> None:
    """A shard lies where BeginShard said."""
    house.catalog.create("a", spec())
    record, encoded, _ = house.upload("a", 0)
    for key in ("datasets/b/shards/0.weft", "datasets/a/shards/1.weft", "datasets/a/manifest.json", "x"):
        with pytest.raises(InvalidArgumentError) as caught:
            house.commits.commit("a", replace(record, key=key), encoded.statistics)
        assert caught.value.field == "shard.key"


def test_commit_refuses_statistics_that_cannot_be(house, spec) -> None:
    """Statistics of other tokens, layers or channels, and NaN, are refused."""
    house.catalog.create("a", spec())
    record, encoded, _ = house.upload("a", 0)
    good = encoded.statistics
    broken = [
        good[:1],
        [replace(good[0], layer=1), good[1]],
        [replace(good[0], input=replace(good[0].input, num_tokens=39)), good[1]],
        [replace(good[0], input=replace(good[0].input, mean=good[0].input.mean[:-1])), good[1]],
        [replace(good[0], input=replace(good[0].input, mean_norm=float("nan"))), good[1]],
        [replace(good[0], output=replace(good[0].output, sum_squared_error=-1.0)), good[1]],
    ]
    for statistics in broken:
        with pytest.raises(InvalidArgumentError) as caught:
            house.commits.commit("a", record, statistics)
        assert caught.value.field == "shard.statistics"


def test_commit_record_is_small(house, spec) -> None:
    """The record that writers contend for carries no statistics."""
    house.catalog.create("a", spec())
    house.add("a", 0, split=Split.HELD_OUT)
    record, _ = read_json(house.store, layout.commit_key("a", 0))
    assert set(record) == {"index", "key", "sha256", "size_bytes", "num_tokens", "split", "row_group_tokens"}


def test_begin_of_an_unknown_dataset_is_not_found(house) -> None:
    """There is nothing to add a shard to."""
    with pytest.raises(NotFoundError, match="datasets/a"):
        house.commits.begin("a", 0)
