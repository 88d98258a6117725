"""Leases by name: what their owner says of them, whom they are lost to, and who dies of them again and again."""

import pytest

from weft_common.errors import InternalError
from weft_store.adapters.memory import MemoryObjectStore
from weft_store.documents import read_json
from weft_store.leases import Leases


class House:
    """Owners over one bucket, and a clock."""

    def __init__(self) -> None:
        self.now, self.store = 100.0, MemoryObjectStore()

    def owner(self, name: str, most_takes: int | None = None) -> Leases[str]:
        return Leases(self.store, "work/leases", name, lease_s=10, most_takes=most_takes, clock=lambda: self.now)


def test_notes_go_with_signs_of_life() -> None:
    """Others read what the owner wrote down last; a lease that nobody took is not there."""
    house = House()
    a, b = house.owner("a"), house.owner("b")
    assert a.take_first(["x", "y"]) == "x"
    assert not a.extend(["x"], {"x": {"share": 0.5}, "y": {"share": 0.1}})
    assert {name: lease["share"] for name, lease in b.look(["x", "y"]).items()} == {"x": 0.5}
    house.now += 9
    assert b.take_first(["x"]) is None
    house.now += 2
    assert b.take_first(["x"]) == "x"
    assert "share" not in a.look(["x"])["x"]


def test_owner_hears_of_what_it_lost() -> None:
    """What another took, marked as done or cleared away is not extended, and named."""
    house = House()
    a, b = house.owner("a"), house.owner("b")
    assert [a.take_first([name]) for name in "wxyz"] == list("wxyz")
    house.now += 11
    assert b.take_first(["x"]) == "x"
    b.mark_done("y", {"rows": 3})
    house.store.delete("work/leases/z.json")
    assert a.extend("wxyz") == {"x", "y", "z"}
    assert b.take_first(["w"]) is None
    assert b.done["y"]["rows"] == 3
    assert read_json(house.store, "work/leases/x.json")[0]["owner"] == "b"


def test_part_that_its_owners_die_of_is_given_up() -> None:
    """Owners that let go in order do not count; who asks again after that begins to count anew."""
    house = House()
    for number in range(5):
        orderly = house.owner(f"orderly {number}", most_takes=2)
        assert orderly.take_first(["x"]) == "x"
        orderly.give_up(["x"])
    for _ in range(2):
        for number in range(3):
            assert house.owner(f"dead {number}", most_takes=2).take_first(["x"]) == "x"
            house.now += 11
        with pytest.raises(InternalError, match="taken up 3 times by processes that died"):
            house.owner("last", most_takes=2).take_first(["x"])
