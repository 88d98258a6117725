"""Snapshots number what is committed, stay as they are, and are whole or refused whatever happens meanwhile."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from weft_cache.core import layout
from weft_cache.core.records import Split, State
from weft_common.errors import (
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)


@pytest.fixture
def filled(house, spec) -> Any:
    """An open dataset `a` with two shards to train on and one held out, not in the order of their indices."""
    house.catalog.create("a", spec())
    house.add("a", 3, 20, Split.HELD_OUT)
    house.add("a", 1, 40)
    house.add("a", 0, 30)
    return house


def _then(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, act: Callable[[], object]) -> None:
    """Once, right after the next call of a method, do something else; a lazy result is read first."""
    call = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(owner, name, call)
        found = call(*args, **kwargs)
        found = iter(list(found)) if name == "commits" else found
        act()
        return found

    monkeypatch.setattr(owner, name, wrapped)


def _before(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, act: Callable[[], object]) -> None:
    """Once, right before the next call of a method, do something else."""
    call = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(owner, name, call)
        act()
        return call(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapped)


def test_snapshot_stays_what_it_was(filled) -> None:
    """Shards that come later are in the next one only; both are read as they were taken, also once it is sealed."""
    first = filled.snapshots.take("a")
    filled.add("a", 2, 50)
    second = filled.snapshots.take("a")
    assert (first.snapshot, [shard.index for shard in first.shards]) == (1, [0, 1, 3])
    assert (second.snapshot, [shard.index for shard in second.shards]) == (2, [0, 1, 2, 3])
    assert (first.num_tokens(Split.TRAIN), first.num_tokens(Split.HELD_OUT)) == (70, 20)
    assert filled.snapshots.get("a", 1) == first
    sealed = filled.sealing.seal("a", 4)
    assert filled.snapshots.get("a", 1).shards == first.shards
    assert filled.snapshots.get("a", 2).shards == sealed.shards


def test_snapshot_is_found_again_where_nothing_came(filled) -> None:
    """A call that is repeated numbers nothing new."""
    assert filled.snapshots.take("a") == filled.snapshots.take("a")
    assert filled.snapshots._numbers("a") == {1}


def test_snapshot_of_a_sealed_dataset_is_the_dataset(filled) -> None:
    """It has no number, because it cannot change any more."""
    filled.add("a", 2)
    sealed = filled.sealing.seal("a", 4)
    assert filled.snapshots.take("a") == sealed
    assert sealed.snapshot == 0


def test_statistics_are_those_of_the_snapshots_training_rows(house, spec) -> None:
    """Each snapshot's moments equal NumPy's over its own training rows, merged from the one before or not."""
    house.catalog.create("a", spec())
    parts = []
    for count in (1, 3, 4):
        while len(parts) < count:
            parts.append(house.add("a", len(parts), 30 + len(parts))[1])
        house.add("a", 10 + count, 25, Split.HELD_OUT)
        found = house.snapshots.statistics(house.snapshots.take("a"))
        for layer in found:
            for name in ("input", "output"):
                rows = np.concatenate([part[name][layer.layer] for part in parts]).astype(np.float64)
                stream = getattr(layer, name)
                assert stream.num_tokens == len(rows)
                np.testing.assert_allclose(stream.mean, rows.mean(axis=0), atol=1e-12)
                np.testing.assert_allclose(stream.sum_squared_deviation, ((rows - rows.mean(0)) ** 2).sum(), rtol=1e-12)
                np.testing.assert_allclose(stream.mean_norm, np.linalg.norm(rows, axis=1).mean(), rtol=1e-9)


def test_plans_of_snapshots_share_every_row_group_out_once(filled) -> None:
    """A plan of the second less the first has what came between, and the same before and after the seal."""
    filled.snapshots.take("a")
    filled.add("a", 2, 50)
    filled.snapshots.take("a")

    def plan(**which: int) -> Any:
        return filled.reading.plan("a", Split.TRAIN, rank=0, world_size=1, epoch=1, seed=5, **which)

    plans = [plan(snapshot=1), plan(snapshot=2, since_snapshot=1), plan(snapshot=2)]
    assert [each.num_tokens for each in plans] == [70, 50, 120]
    units = [{(piece.shard.index, piece.row_group) for piece in each.slices} for each in plans]
    assert units[0] | units[1] == units[2]
    assert not units[0] & units[1]
    filled.sealing.seal("a", 4)
    assert [plan(snapshot=1), plan(snapshot=2, since_snapshot=1), plan(snapshot=2)] == plans
    assert plan() == plans[2]
    assert plan(since_snapshot=1) == plans[1]


@pytest.mark.parametrize(
    ("which", "error", "says"),
    [
        ({"snapshot": 2}, NotFoundError, "no snapshot 2"),
        ({"snapshot": -1}, InvalidArgumentError, "snapshot is -1"),
        ({"snapshot": 1, "since_snapshot": 1}, InvalidArgumentError, "since_snapshot is 1"),
        ({"snapshot": 1, "since_snapshot": -1}, InvalidArgumentError, "since_snapshot is -1"),
        ({"since_snapshot": 1}, FailedPreconditionError, "SnapshotDataset"),
    ],
)
def test_plan_refuses_a_snapshot_that_is_none(filled, which: dict[str, int], error: type[Exception], says: str) -> None:
    """Each refusal says what was expected."""
    filled.snapshots.take("a")
    with pytest.raises(error, match=says):
        filled.reading.plan("a", Split.TRAIN, rank=0, world_size=1, epoch=0, seed=0, **which)


def test_snapshot_of_nothing_is_refused(house, spec) -> None:
    """Without tokens there is nothing to number; without a dataset neither."""
    house.catalog.create("a", spec())
    with pytest.raises(FailedPreconditionError, match="no tokens yet: 0 shards"):
        house.snapshots.take("a")
    house.add("a", 0, 0)
    with pytest.raises(FailedPreconditionError, match="no tokens yet: 1 shards"):
        house.snapshots.take("a")
    with pytest.raises(NotFoundError, match="datasets/b"):
        house.snapshots.take("b")
    assert list(house.store.list(layout.snapshots_prefix("a"))) == []


def test_snapshot_raced_by_a_commit_has_it_or_not(filled, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard that is committed after the list was read is left to the next snapshot."""
    _then(monkeypatch, filled.catalog, "commits", lambda: filled.add("a", 2, 50))
    assert [shard.index for shard in filled.snapshots.take("a").shards] == [0, 1, 3]
    assert [shard.index for shard in filled.snapshots.take("a").shards] == [0, 1, 2, 3]


def test_snapshots_that_meet_take_two_numbers(filled, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slower one reads again, so that the higher number has every shard of the lower; no statistics are lost."""

    def other() -> None:
        filled.add("a", 2, 50)
        filled.snapshots.take("a")
        filled.add("a", 4, 10)

    _then(monkeypatch, filled.catalog, "commits", other)
    found = filled.snapshots.take("a")
    first = filled.snapshots.get("a", 1)
    assert (found.snapshot, [shard.index for shard in found.shards]) == (2, [0, 1, 2, 3, 4])
    assert [shard.index for shard in first.shards] == [0, 1, 2, 3]
    for snapshot, tokens in ((first, 120), (found, 130)):
        assert filled.snapshots.statistics(snapshot)[0].input.num_tokens == tokens
    assert len(list(filled.store.list(layout.snapshots_prefix("a")))) == 4


def test_snapshots_of_the_same_shards_that_meet_are_one(filled, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slower one finds the other's, statistics and all."""
    _then(monkeypatch, filled.catalog, "commits", lambda: filled.snapshots.take("a"))
    found = filled.snapshots.take("a")
    assert found == filled.snapshots.get("a", 1)
    assert len(filled.snapshots.statistics(found)) == 2
    assert len(list(filled.store.list(layout.snapshots_prefix("a")))) == 2


@pytest.mark.parametrize("call", ["commits", "manifest"])
def test_snapshot_raced_by_a_seal_is_the_sealed_dataset(filled, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Whenever the seal comes, before or after the shards are listed, nothing half is numbered."""
    filled.add("a", 2)
    _then(monkeypatch, filled.catalog, call, lambda: filled.sealing.seal("a", 4))
    found = filled.snapshots.take("a")
    assert (found.snapshot, found.state, len(found.shards)) == (0, State.SEALED, 4)
    assert filled.snapshots._numbers("a") == set()


def test_snapshot_raced_by_a_seal_while_it_is_written_is_whole(filled, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sealed right before the list is put: the dataset is the answer, and the number that is left can be read."""
    filled.add("a", 2)
    _before(monkeypatch, filled.store, "put", lambda: filled.sealing.seal("a", 4))
    assert filled.snapshots.take("a").snapshot == 0
    assert filled.snapshots.get("a", 1).shards == filled.catalog.get("a").shards
    assert filled.reading.verify("a").problems == ()


def test_snapshot_with_a_shard_that_the_seal_left_out_is_refused(filled, monkeypatch: pytest.MonkeyPatch) -> None:
    """A surplus shard that was committed while the dataset was sealed is taken back; a snapshot of it says so."""
    filled.add("a", 2)
    late, encoded, _ = filled.upload("a", 4, 10)

    def commit() -> None:
        with pytest.raises(FailedPreconditionError, match="not taken"):
            filled.commits.commit("a", late, encoded.statistics)

    settle = filled.commits._settle

    def slow(*args: Any, **kwargs: Any) -> Any:
        filled.snapshots.take("a")
        # The seal had listed the shards before this one came.
        sealing._turn(listed)
        return settle(*args, **kwargs)

    sealing, listed = filled.sealing, filled.catalog.get("a")
    sealing._write_statistics(listed)
    monkeypatch.setattr(filled.commits, "_settle", slow)
    commit()
    with pytest.raises(FailedPreconditionError, match="without shard 4 of its snapshot 1"):
        filled.snapshots.get("a", 1)
    assert filled.snapshots.take("a").snapshot == 0


@pytest.mark.parametrize(("owner", "call"), [("catalog", "commits"), ("sealing", "merge"), ("store", "put")])
def test_snapshot_raced_by_a_deletion_leaves_nothing(
    filled, monkeypatch: pytest.MonkeyPatch, owner: str, call: str
) -> None:
    """Whenever the deletion comes, the snapshot is refused and nothing of it stays."""
    _then(monkeypatch, getattr(filled, owner), call, lambda: filled.deletion.delete("a"))
    with pytest.raises(NotFoundError, match="datasets/a"):
        filled.snapshots.take("a")
    assert list(filled.store.list("")) == []


def test_snapshot_of_a_deleted_dataset_is_not_the_next_ones(filled, spec, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataset of the same name, made while the snapshot was written, does not get it, and numbers its own."""

    def replace() -> None:
        filled.deletion.delete("a")
        filled.catalog.create("a", spec())
        filled.add("a", 0, 17)

    _then(monkeypatch, filled.store, "put", replace)
    found = filled.snapshots.take("a")
    assert (found.snapshot, found.num_tokens(Split.TRAIN)) == (2, 17)
    with pytest.raises(NotFoundError, match="no snapshot 1"):
        filled.snapshots.get("a", 1)
    filled.deletion.delete("a")
    assert list(filled.store.list("")) == []


def test_statistics_that_are_gone_are_data_loss(filled) -> None:
    """A bucket that lost something says so, and not that there is no such snapshot."""
    taken = filled.snapshots.take("a")
    filled.store.delete(layout.shard_statistics_key("a", 1, taken.shards[1].sha256))
    assert filled.snapshots.take("a") == taken
    for item in filled.store.list(layout.snapshots_prefix("a")):
        if layout.snapshot_number(item.key) is None:
            filled.store.delete(item.key)
    with pytest.raises(DataLossError, match="statistics of snapshot 1"):
        filled.snapshots.statistics(taken)
    filled.add("a", 2)
    with pytest.raises(DataLossError, match="gone"):
        filled.snapshots.take("a")
