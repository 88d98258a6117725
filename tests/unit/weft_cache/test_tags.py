"""What datasets are called by, and how they are found again."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime

import pytest
from cache_house import SPEC, House
from hypothesis import given, settings
from hypothesis import strategies as st

from weft_cache.core.filtering import DatasetFilter
from weft_cache.core.records import State
from weft_cache.core.tags import MAX_TAGS, check_tags
from weft_common.errors import InvalidArgumentError, NotFoundError


@pytest.mark.parametrize(
    ("tags", "good"),
    [
        ({"team": "vision", "a.b_c-9": ""}, True),
        ({"example.org/stage": "v1.2"}, True),
        ({"k" * 63: "v" * 63, "x" * 63 + "." + "y" * 63 + "/n": "v"}, True),
        ({"": "v"}, False),
        ({"-team": "v"}, False),
        ({"team": "two words"}, False),
        ({"team": "v" * 64}, False),
        ({"k" * 64: "v"}, False),
        ({"Example.org/stage": "v"}, False),
        ({"example..org/stage": "v"}, False),
        ({"a/b/c": "v"}, False),
        ({"/b": "v"}, False),
        ({"team\n": "v"}, False),
        ({f"k{number}": "" for number in range(MAX_TAGS + 1)}, False),
    ],
)
def test_tags_follow_the_rules_of_kubernetes_labels(tags: dict[str, str], good: bool) -> None:
    """What Kubernetes takes as a label is taken, at most 32 of them, and nothing else is."""
    if good:
        assert check_tags(tags, field="tags") == tags
        return
    with pytest.raises(InvalidArgumentError) as caught:
        check_tags(tags, field="tags")
    assert caught.value.field == "tags"


def test_tags_change_one_by_one_and_outlive_the_seal(house, spec) -> None:
    """Those that are not named stay; a seal, a snapshot and a second creation change none."""
    house.catalog.create("a", spec())
    house.add("a", 0)
    assert house.catalog.update("a", {"team": "x", "use": "try"}, []).tags == {"team": "x", "use": "try"}
    assert house.snapshots.take("a").tags == {"team": "x", "use": "try"}
    house.sealing.seal("a", 1)
    changed = house.catalog.update("a", {"use": "keep"}, ["team", "other"])
    assert (changed.tags, changed.state) == ({"use": "keep"}, State.SEALED)
    assert house.catalog.create("a", spec()) == changed == house.catalog.get("a")
    with pytest.raises(InvalidArgumentError, match="set and removed"):
        house.catalog.update("a", {"use": "x"}, ["use"])


def test_tags_of_a_dataset_are_bounded_over_all_changes(house, spec) -> None:
    """Changes that are small each cannot add up to more than a dataset may have."""
    house.catalog.create("a", spec())
    house.catalog.update("a", {f"k{number}": "" for number in range(MAX_TAGS)}, [])
    with pytest.raises(InvalidArgumentError, match="33 tags"):
        house.catalog.update("a", {"one": "more"}, [])
    assert len(house.catalog.update("a", {"one": "more"}, ["k0"]).tags) == MAX_TAGS


def test_tags_that_many_set_at_once_are_all_kept(house, spec) -> None:
    """No writer undoes what another wrote in between."""
    house.catalog.create("a", spec())
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda n: house.catalog.update("a", {f"k{n}": str(n)}, []), range(12)))
    assert house.catalog.get("a").tags == {f"k{n}": str(n) for n in range(12)}


def test_tags_of_a_dataset_that_is_gone_are_not_found(house, spec) -> None:
    """Neither a dataset that never was nor one whose deletion was cut short takes tags."""
    with pytest.raises(NotFoundError):
        house.catalog.update("a", {"team": "x"}, [])
    house.catalog.create("a", spec())
    house.store.put(
        "datasets/a/manifest.json", house.store.get("datasets/a/manifest.json").replace(b"open", b"deleting")
    )
    with pytest.raises(NotFoundError):
        house.catalog.update("a", {"team": "x"}, [])


_TAGS = st.dictionaries(st.sampled_from("kl"), st.sampled_from("12"))
_MADE = st.tuples(st.sampled_from(["models/m", "models/n"]), st.sampled_from(["bf16", "uniform"]), st.booleans(), _TAGS)


@settings(max_examples=20, deadline=None)
@given(made=st.lists(_MADE, max_size=6), tags=_TAGS, data=st.data())
def test_list_with_a_filter_finds_what_a_search_by_hand_finds(made, tags, data) -> None:
    """All that is set holds for what is listed and for nothing else, however pages are cut."""
    house = House()
    kinds: dict[str, tuple[str, str, State, dict[str, str], datetime]] = {}
    for number, (model, codec, sealed, has) in enumerate(made):
        name, target = f"d{number}", 1e-3 if codec == "uniform" else 0.0
        created = house.catalog.create(name, replace(SPEC, model=model, codec=codec, target_fvu=target)).create_time
        if sealed and codec == "bf16":
            house.add(name, 0, 5)
            house.sealing.seal(name, 1)
        house.catalog.update(name, has, [])
        kinds[name] = (model, codec, State.SEALED if sealed and codec == "bf16" else State.OPEN, has, created)
    moments = [None, *(kind[4] for kind in kinds.values())]
    start, end = data.draw(st.sampled_from(moments)), data.draw(st.sampled_from(moments))
    if start and end and start >= end:
        end = None
    model, codec = data.draw(st.sampled_from(["", "models/n"])), data.draw(st.sampled_from(["", "bf16"]))
    state = data.draw(st.sampled_from([None, State.OPEN, State.SEALED]))
    wanted = DatasetFilter(state, model, codec, tags, start, end)
    found: list[str] = []
    token, first = "", True
    while token or first:
        page, token = house.catalog.list(2, token, wanted)
        found, first = [*found, *(each.id for each in page)], False
    by_hand = [
        name
        for name, (has_model, has_codec, has_state, has, created) in reversed(kinds.items())
        if has_model.startswith(model)
        and codec in ("", has_codec)
        and state in (None, has_state)
        and tags.items() <= has.items()
        and (not start or start <= created)
        and (not end or created < end)
    ]
    assert found == by_hand


def test_list_refuses_a_filter_that_nothing_can_meet(house) -> None:
    """A span that ends before it begins, and a model's bare id, are mistakes of the caller's."""
    early, late = (
        datetime.fromisoformat("2026-01-01T00:00:00+00:00"),
        datetime.fromisoformat("2026-02-01T00:00:00+00:00"),
    )
    for wrong, field in (
        (DatasetFilter(created_from=late, created_before=early), "filter.created_from"),
        (DatasetFilter(model="m"), "filter.model"),
        (DatasetFilter(tags={"a b": ""}), "filter.tags"),
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            house.catalog.list(0, "", wrong)
        assert caught.value.field == field
