"""What came of each feature, as it is stored: read again, gone on with, filtered."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft_attribution.core.interpretation.results import (
    Ending,
    FeatureResult,
    Rating,
    Results,
    plain,
    read_results,
)
from weft_attribution.core.labels import Place, ScoreKind
from weft_common.errors import DataLossError, UnavailableError
from weft_store import ObjectStore, open_store

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
TESTS = st.builds(
    Rating,
    kind=st.sampled_from(ScoreKind),
    value=st.floats(0, 1),
    low=st.floats(0, 1),
    high=st.floats(0, 1),
    n=st.integers(0, 500),
    unanswered=st.integers(0, 500),
    is_control=st.booleans(),
)
RESULTS = st.builds(
    FeatureResult,
    place=st.builds(Place, st.integers(0, 99), st.integers(0, 10**6)),
    ending=st.sampled_from(Ending),
    label=TEXTS,
    reason=TEXTS,
    tests=st.lists(TESTS, max_size=4).map(tuple),
)


def read(store: ObjectStore, **options: Any) -> dict[int, FeatureResult]:
    return dict(read_results(store, "t", "op", **options))


def labelled(index: int, text: str = "a") -> FeatureResult:
    return FeatureResult(Place(0, index), Ending.LABELLED, text)


@given(st.dictionaries(st.integers(0, 1_700), RESULTS, max_size=6), st.sets(st.sampled_from(Ending)), st.data())
def test_results_are_read_as_they_were_noted(
    found: dict[int, FeatureResult], endings: set[Ending], data: st.DataObject
) -> None:
    """Whatever was noted, in whatever order and however often it was written between, by place and filter."""
    store = open_store("memory://")
    results = Results(store, "t", "op")
    for at in data.draw(st.permutations(sorted(found))):
        results.note(at, found[at])
        if data.draw(st.booleans()):
            results.write()
    results.write()
    assert list(read_results(store, "t", "op")) == sorted(found.items())
    first = data.draw(st.integers(0, 1_700))
    wanted = {at: each for at, each in found.items() if at >= first and (not endings or each.ending in endings)}
    assert read(store, first=first, endings=endings) == wanted


def test_results_of_a_process_that_died_stay_until_they_come_again() -> None:
    """Another process begins at the first feature; what the one before had further on is not lost meanwhile."""
    store = open_store("memory://")
    first = Results(store, "t", "op")
    for at in range(700):
        first.note(at, labelled(at, "old"))
    first.write()
    second = Results(store, "t", "op")
    second.note(0, labelled(0, "new"))
    second.write()
    texts = [each.label for each in read(store).values()]
    assert texts == ["new"] + ["old"] * 699
    for at in range(700):
        second.note(at, labelled(at, "new"))
        if at % 90 == 0:
            second.write()
    second.write()
    assert {each.label for each in read(store).values()} == {"new"}


def test_results_that_cannot_be_stored_are_stored_by_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket that is away for a moment costs no result."""
    store = open_store("memory://")
    results = Results(store, "t", "op")
    results.note(3, labelled(3))

    def away(*_: Any, **__: Any) -> None:
        raise UnavailableError("the bucket is away")

    with monkeypatch.context() as patched:
        patched.setattr(store, "put", away)
        with pytest.raises(UnavailableError):
            results.write()
    assert read(store) == {}
    results.write()
    assert list(read(store)) == [3]


def test_results_of_other_operations_are_not_among_them(tmp_path: Path) -> None:
    """One whose id begins alike has a folder of its own."""
    store = open_store(f"file://{tmp_path}/bucket")
    for operation in ("op", "op2"):
        results = Results(store, "t", operation)
        results.note(0, labelled(0, operation))
        results.write()
    assert [each.label for each in read(store).values()] == ["op"]


def test_damaged_results_are_named() -> None:
    """The object that is no list of results stands in the message, with what to do."""
    store = open_store("memory://")
    store.put("features/t/interpretations/op/0.json", b'{"features": {"0": {"place": [1, 2], "ending": "sung"}}}')
    with pytest.raises(DataLossError, match=r"interpretations/op/0\.json.*delete it"):
        read(store)


def test_reason_is_one_short_plain_line() -> None:
    """Line ends, turning characters and length are what a page need not care for."""
    assert plain("a\r\nb\x00c\u2066d") == "a b c d"
    assert len(plain("long " * 1_000)) == 300
    assert plain("x" * 300) == "x" * 300
