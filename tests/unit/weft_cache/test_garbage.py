"""What a collection of garbage deletes, and what it never does."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft_cache.core.garbage import DEFAULT_AGE_S
from weft_cache.core.retention import Aged, Retention, expired
from weft_common.errors import DataLossError, InvalidArgumentError, NotFoundError
from weft_store import ObjectInfo
from weft_store.documents import encode_json

_START = datetime(2026, 1, 1, tzinfo=UTC)
_RULES = st.sampled_from([Retention(), Retention(2), Retention(0, 1, "t"), Retention(2, 2, "t")])


@st.composite
def _aged(draw: st.DrawFn) -> list[Aged]:
    return [
        Aged(
            f"d{number}",
            draw(st.booleans()),
            _START + timedelta(days=draw(st.integers(0, 3))),
            _START + timedelta(days=draw(st.integers(0, 6))),
            draw(st.sampled_from([{}, {"t": "x"}, {"t": "y"}])),
            draw(_RULES),
        )
        for number in range(draw(st.integers(0, 6)))
    ]


@given(datasets=_aged(), day=st.integers(0, 8))
def test_expired_are_those_that_no_rule_keeps(datasets: list[Aged], day: int) -> None:
    """Each rule by itself, as the contract says it, and their union."""
    now = _START + timedelta(days=day)
    over = expired(datasets, now)
    for one in datasets:
        rules = one.retention
        kept_by_days = rules.keep_days and (now - one.active_time).days < rules.keep_days
        rivals = [
            other
            for other in datasets
            if other.sealed and other.tags.get("t") == one.tags.get("t") and other.create_time > one.create_time
        ]
        rivals += [
            other
            for other in datasets
            if other.sealed
            and other.tags.get("t") == one.tags.get("t")
            and other.create_time == one.create_time
            and other.id > one.id
        ]
        kept_by_last = rules.keep_last and (not one.sealed or "t" not in one.tags or len(rivals) < rules.keep_last)
        kept = not (rules.keep_days or rules.keep_last) or bool(kept_by_days) or bool(kept_by_last)
        assert (one.id in over) == (not kept)


def test_collection_names_first_and_deletes_on_request(house, spec) -> None:
    """A dry run changes no byte; what it names is what goes then, and a held dataset stays."""
    house.now = datetime(2001, 1, 1, tzinfo=UTC)
    for name in ("old", "held", "kept", "young"):
        house.catalog.create(name, spec())
        house.add(name, 0)
        house.sealing.seal(name, 1)
        house.catalog.update(name, {}, [], Retention(keep_days={"kept": 0, "young": 36_500}.get(name, 1)))
    house.holds.hold("held", "pins/paper")
    house.now = datetime.now(UTC)
    before = {item.key: house.store.get(item.key) for item in house.store.list("datasets/")}
    named = house.garbage.collect(delete=False)
    assert (named.expired, named.held) == (["old"], {"held": ["pins/paper"]})
    assert {item.key: house.store.get(item.key) for item in house.store.list("datasets/")} == before
    done = house.garbage.collect(delete=True)
    assert (done.expired, done.held, done.problems) == (["old"], {"held": ["pins/paper"]}, [])
    assert set(house.store.list_folders("datasets/")) == {"held", "kept", "young"}


def test_collection_believes_the_earlier_of_two_clocks(house, spec) -> None:
    """A service whose clock runs ahead by years deletes nothing early, nor does a bucket's: both have to say so."""
    house.now = datetime.now(UTC)
    house.catalog.create("ahead", spec())
    house.now = datetime(2001, 1, 1, tzinfo=UTC)
    house.catalog.create("behind", spec())
    for name in ("ahead", "behind"):
        house.catalog.update(name, {}, [], Retention(keep_days=30))
    assert house.garbage.collect(delete=True).expired == []
    house.now = datetime(9000, 1, 1, tzinfo=UTC)
    assert house.garbage.collect(delete=True).expired == ["behind"]


def test_collection_deletes_lost_uploads_and_no_shard(house, spec, aged_store) -> None:
    """Uploads of taken indices, of sealed datasets and of nobody go once they are old; what is committed stays."""
    house.catalog.create("open", spec())
    shard, _ = house.add("open", 0)
    lost = [house.commits.begin("open", 1).key, "datasets/open/shards/0-ffff.weft"]
    for key in lost:
        house.store.put(key, b"lost")
    house.catalog.create("done", spec())
    sealed, _ = house.add("done", 0)
    house.sealing.seal("done", 1)
    lost.append("datasets/done/shards/5-ffff.weft")
    house.store.put(lost[-1], b"lost")
    assert house.garbage.collect(delete=True).num_uploads == 0
    aged_store(2 * DEFAULT_AGE_S)
    named = house.garbage.collect(delete=False)
    assert (named.num_uploads, named.upload_bytes) == (3, 12)
    assert (house.garbage.collect(delete=True).num_uploads, house.garbage.collect(delete=True).num_uploads) == (3, 0)
    there = {item.key for item in house.store.list("datasets/")}
    assert {shard.key, sealed.key} <= there
    assert not there & set(lost)


def test_upload_that_was_collected_is_not_committed(house, spec, aged_store) -> None:
    """A writer that comes back after days is told to write again, and the shard it writes then is taken."""
    house.catalog.create("a", spec())
    late, encoded, _ = house.upload("a", 0)
    aged_store(2 * DEFAULT_AGE_S)
    assert house.garbage.collect(delete=True).num_uploads == 1
    house.store.put(late.key, encoded.data)
    with pytest.raises(DataLossError, match="begin the shard anew"):
        house.commits.commit("a", late, encoded.statistics)
    again, _ = house.add("a", 0)
    assert house.sealing.seal("a", 1).shards == (again,)


def test_collection_that_meets_a_commit_and_the_seal_keeps_the_shard(house, spec, aged_store, monkeypatch) -> None:
    """An upload that was listed, then committed, then sealed, has neither record nor claim left, and is a shard."""
    house.catalog.create("a", spec())
    record, encoded, _ = house.upload("a", 0)
    aged_store(2 * DEFAULT_AGE_S)
    listed, met = house.store.list, []

    def then(prefix: str) -> Iterator[ObjectInfo]:
        items = list(listed(prefix))
        if prefix.endswith("/shards/") and not met:
            met.append(prefix)
            house.commits.commit("a", record, encoded.statistics)
            house.sealing.seal("a", 1)
        return iter(items)

    monkeypatch.setattr(house.store, "list", then)
    assert house.garbage.collect(delete=True).num_uploads == 0
    assert met
    assert house.reading.verify("a").problems == ()


def test_collection_that_meets_a_commit_keeps_the_shard(house, spec, aged_store, monkeypatch) -> None:
    """A commit that comes between the look for its record and the decision has claimed the upload first."""
    house.catalog.create("a", spec())
    record, encoded, _ = house.upload("a", 0)
    aged_store(2 * DEFAULT_AGE_S)
    read, met = house.store.get_with_info, []

    def then(key: str) -> tuple[bytes, ObjectInfo]:
        if key == "datasets/a/commits/0.json" and not met:
            met.append(key)
            house.commits.commit("a", record, encoded.statistics)
            raise NotFoundError(key)
        return read(key)

    monkeypatch.setattr(house.store, "get_with_info", then)
    assert house.garbage.collect(delete=True).num_uploads == 0
    assert met
    assert house.sealing.seal("a", 1).shards == (record,)
    assert house.reading.verify("a").problems == ()


def test_collection_finishes_deletions_and_clears_what_they_left(house, spec) -> None:
    """A deletion that was cut short ends; objects under the name of no dataset go; then the name is free."""
    house.catalog.create("a", spec())
    house.add("a", 0)
    manifest = house.store.get("datasets/a/manifest.json")
    house.store.put("datasets/a/manifest.json", manifest.replace(b'"open"', b'"deleting"'))
    house.store.put("datasets/b/shards/0-ff.weft", b"late")
    assert house.garbage.collect(delete=False).num_leftovers == 6
    house.garbage.collect(delete=True)
    assert list(house.store.list("datasets/")) == []
    house.catalog.create("a", spec())


def test_collection_goes_on_past_a_damaged_manifest(house, spec) -> None:
    """It is named, left as it is, and keeps nobody else's garbage."""
    house.now = datetime(2001, 1, 1, tzinfo=UTC)
    for name in ("a", "b", "c"):
        house.catalog.create(name, spec())
    house.catalog.update("b", {}, [], Retention(keep_days=1))
    house.store.put("datasets/a/manifest.json", b"no JSON")
    house.store.put("datasets/c/manifest.json", encode_json({"state": "open"}))
    house.now = datetime.now(UTC)
    found = house.garbage.collect(delete=True)
    assert found.expired == ["b"]
    assert [problem.split(":")[0] for problem in found.problems] == ["datasets/a", "datasets/c"]
    assert {item.key for item in house.store.list("datasets/")} == {
        "datasets/a/manifest.json",
        "datasets/c/manifest.json",
    }


def test_collection_refuses_an_age_at_which_uploads_are_on_their_way(house) -> None:
    """An upload of a minute ago is somebody's work."""
    with pytest.raises(InvalidArgumentError, match="3600 or more"):
        house.garbage.collect(delete=True, min_age_s=60)


@pytest.mark.parametrize("rules", [Retention(-1), Retention(keep_last=1), Retention(0, 1, "a b"), Retention(99_999)])
def test_retention_refuses_rules_that_make_no_sense(house, spec, rules: Retention) -> None:
    """Half a rule, a key that is none, and figures out of bounds."""
    house.catalog.create("a", spec())
    with pytest.raises(InvalidArgumentError):
        house.catalog.update("a", {}, [], rules)
