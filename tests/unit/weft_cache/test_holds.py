"""Who holds a dataset, and that nobody deletes it meanwhile."""

from datetime import timedelta

import pytest

from weft_cache.adapters.bucket_holders import BucketHolders
from weft_cache.core.records import State
from weft_common.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from weft_store.documents import encode_json, read_json


def _run(house, name: str, state: str) -> None:
    house.store.put(f"runs/{name}/run.json", encode_json({"run": name, "state": state}))


def test_delete_refuses_while_a_run_goes_on_and_names_it(house, spec) -> None:
    """A run holds its dataset until it has ended, however long that takes, and nothing of the dataset changes."""
    house.catalog.create("a", spec())
    _run(house, "r1", "PAUSED")
    house.holds.hold("a", "runs/r1")
    before = house.store.get("datasets/a/manifest.json")
    house.now += timedelta(days=10_000)
    with pytest.raises(FailedPreconditionError, match="held by runs/r1") as caught:
        house.deletion.delete("a")
    assert caught.value.metadata == {"holder": "runs/r1"}
    assert house.store.get("datasets/a/manifest.json") == before
    _run(house, "r1", "FAILED")
    house.deletion.delete("a")
    assert [item.key for item in house.store.list("datasets/")] == []


def test_hold_of_an_ended_run_counts_again_once_it_goes_on(house, spec) -> None:
    """A failed run that is resumed holds anew, and then the dataset stays."""
    house.catalog.create("a", spec())
    _run(house, "r1", "FAILED")
    house.holds.hold("a", "runs/r1")
    made = house.catalog.manifest("a")["create_time"]
    assert house.holds.live("a", made) == []
    _run(house, "r1", "PENDING")
    house.holds.hold("a", "runs/r1")
    assert [hold.holder for hold in house.holds.live("a", made)] == ["runs/r1"]


def test_pin_holds_until_it_is_released(house, spec) -> None:
    """A person's hold ends by that person's word only; releasing twice is success."""
    house.catalog.create("a", spec())
    house.holds.hold("a", "pins/paper")
    house.holds.hold("a", "pins/paper")
    with pytest.raises(FailedPreconditionError, match="weft datasets release a PIN"):
        house.deletion.delete("a")
    house.holds.release("a", "pins/other")
    house.holds.release("a", "pins/paper")
    house.holds.release("a", "pins/paper")
    house.deletion.delete("a")


def test_hold_is_of_one_dataset_not_of_its_name(house, spec) -> None:
    """What is left of a hold on a deleted dataset does not hold another one of that name."""
    house.catalog.create("a", spec())
    hold = house.holds.hold("a", "pins/paper")
    document = house.store.get(hold.key)
    house.holds.release("a", "pins/paper")
    house.deletion.delete("a")
    house.catalog.create("a", spec())
    house.store.put(hold.key, document)
    house.deletion.delete("a")


def test_hold_of_what_is_gone_or_going_is_not_found(house, spec) -> None:
    """A holder is told so, and leaves nothing behind."""
    with pytest.raises(NotFoundError):
        house.holds.hold("a", "pins/paper")
    house.catalog.create("a", spec())
    manifest, _ = read_json(house.store, "datasets/a/manifest.json")
    house.store.put("datasets/a/manifest.json", encode_json({**manifest, "state": State.DELETING.value}))
    with pytest.raises(NotFoundError):
        house.holds.hold("a", "pins/paper")
    assert list(house.store.list("datasets/a/holds/")) == []


@pytest.mark.parametrize("holder", ["", "r1", "jobs/r1", "runs/", "runs/a b", "pins/../x"])
def test_hold_refuses_a_holder_of_no_known_kind(house, spec, holder: str) -> None:
    """Whether it has ended could never be told."""
    house.catalog.create("a", spec())
    with pytest.raises(InvalidArgumentError):
        house.holds.hold("a", holder)


def test_holders_are_read_from_their_own_documents(house) -> None:
    """Runs by their state, operations by whether they are done; what is not there has ended."""
    holders = BucketHolders(house.store)
    states = ("PENDING", "RUNNING", "PAUSED", "SUCCEEDED", "FAILED", "CANCELLED")
    for state in states:
        _run(house, state.lower(), state)
    assert [holders.ended(f"runs/{state.lower()}") for state in states] == [False] * 3 + [True] * 3
    for done in (False, True):
        house.store.put(f"operations/trainer/evaluate-{done}.json", encode_json({"done": done}))
    assert [holders.ended(f"operations/trainer-evaluate-{done}") for done in (False, True)] == [False, True]
    assert holders.ended("runs/nobody")


def test_holder_that_cannot_be_read_holds_on(house, spec) -> None:
    """A damaged document of a run is no leave to delete what it reads."""
    house.catalog.create("a", spec())
    house.store.put("runs/r1/run.json", b"no JSON")
    house.holds.hold("a", "runs/r1")
    with pytest.raises(FailedPreconditionError, match="runs/r1"):
        house.deletion.delete("a")
