"""Labels in a bucket: whose stands, what is kept, and writers that meet or are killed."""

import json
from collections.abc import Callable
from itertools import combinations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from interleaving import Program, take_turns

from weft_attribution.core.label_store import REVISIONS_A_FEATURE, LabelStore
from weft_attribution.core.labels import MAX_TEXT, Label, Origin, Place, Score, ScoreKind, check_label
from weft_common.errors import ConflictError, DataLossError, InvalidArgumentError, NotFoundError
from weft_store import ObjectStore, open_store
from weft_store.documents import read_json

FEATURE = Place(1, 7)
PAGE = "features/t/labels/0001/0000000.json"


def label(text: str, origin: Origin = Origin.HUMAN, place: Place = FEATURE) -> Label:
    return Label(place, text, origin)


def words(store: ObjectStore, place: Place = FEATURE) -> list[str]:
    """Every text of a feature, oldest first."""
    return [each.text for each in reversed(LabelStore(store).history("t", place))]


@given(st.lists(st.tuples(st.sampled_from(Origin), st.sampled_from(["", "a", "b", "c"])), max_size=30))
def test_history_is_kept_and_a_person_stands_before_models(said: list[tuple[Origin, str]]) -> None:
    """Whatever is said and withdrawn in whatever order: history has all of it, and what stands is told by hand here."""
    store = open_store("memory://")
    labels = LabelStore(store)
    kept: list[tuple[Origin, str]] = []
    now: dict[Origin, str] = {}
    for origin, text in said:
        if not text and not now.get(origin):
            with pytest.raises(NotFoundError):
                labels.add("t", label(text, origin))
            continue
        labels.add("t", label(text, origin))
        kept.append((origin, text))
        now[origin] = text
    history = labels.history("t", FEATURE)
    assert [(each.origin, each.text) for each in reversed(history)] == kept
    assert [each.revision for each in history] == list(range(len(kept), 0, -1))
    found = labels.get("t", FEATURE)
    standing = found.label()
    assert (standing.text if standing else "") == (now.get(Origin.HUMAN) or now.get(Origin.MODEL) or "")
    for origin in Origin:
        own = found.label(origin)
        assert (own.text if own else "") == now.get(origin, "")
    assert found.etag == str(len(kept))
    assert len(found.revisions) <= REVISIONS_A_FEATURE


def test_page_stays_small_however_often_a_feature_is_labelled() -> None:
    """A thousand changes leave the page as long as ten do, but for the digits; older revisions lie one by one."""
    store = open_store("memory://")
    labels = LabelStore(store, clock=lambda: 1.0)
    sizes = []
    for number in range(200):
        labels.add("t", label(f"{number:04d}", Origin.MODEL))
        sizes.append(store.info(PAGE).size_bytes)
    assert max(sizes[20:]) <= sizes[10] + 3 * REVISIONS_A_FEATURE
    assert words(store) == [f"{number:04d}" for number in range(200)]


def test_writers_that_meet_lose_nothing() -> None:
    """Two writers of one page in every order of their operations: both labels are there, and both histories whole."""
    other = Place(1, 8)
    for places in combinations(range(8), 4):
        store = open_store("memory://")
        LabelStore(store).add("t", label("before"))
        programs = [
            Program(store, lambda mine: LabelStore(mine).add("t", label("one", Origin.MODEL))),
            Program(store, lambda mine: LabelStore(mine).add_many("t", [label("two"), label("three", place=other)])),
        ]
        take_turns(programs, [0 if turn in places else 1 for turn in range(8)], [], lambda: None)
        assert sorted(words(store)) == ["before", "one", "two"], places
        assert words(store, other) == ["three"], places


def test_first_writers_of_a_page_lose_nothing() -> None:
    """The same where the page is not there yet."""
    for places in combinations(range(8), 4):
        store = open_store("memory://")
        programs = [
            Program(store, lambda mine, text=text: LabelStore(mine).add("t", label(text)))  # type: ignore[misc]
            for text in ("one", "two")
        ]
        take_turns(programs, [0 if turn in places else 1 for turn in range(8)], [], lambda: None)
        assert sorted(words(store)) == ["one", "two"], places


@pytest.mark.parametrize("step", range(6))
def test_killed_writer_leaves_a_whole_history(step: int) -> None:
    """Ended before any of its operations, a writer has said its word or not; nothing else changes, and others go on."""
    store = open_store("memory://")
    labels = LabelStore(store)
    before = [f"{number}" for number in range(REVISIONS_A_FEATURE + 3)]
    for text in before:
        labels.add("t", label(text))
    program = Program(store, lambda mine: LabelStore(mine).add("t", label("killed")))
    take_turns([program], [0] * step, [(step - 1, 0)] if step else [], lambda: None)
    assert words(store) in (before, [*before, "killed"])
    labels.add("t", label("after"))
    assert words(store) in ([*before, "after"], [*before, "killed", "after"])


def test_change_on_an_old_etag_is_refused() -> None:
    """Who has not seen what stands changes nothing; `0` asks for there to be none."""
    labels = LabelStore(open_store("memory://"))
    first = labels.add("t", label("one"), etag="0")
    labels.add("t", label("two", Origin.MODEL), etag=first.etag)
    for etag in ("0", first.etag, "nonsense"):
        with pytest.raises(ConflictError, match="read the label again"):
            labels.add("t", label("three"), etag=etag)
    assert [each.text for each in labels.history("t", FEATURE)] == ["two", "one"]


def test_withdrawn_label_is_no_label() -> None:
    """`0` is right after it, an older etag is told what has happened, and what is gone is not withdrawn again."""
    labels = LabelStore(open_store("memory://"))
    first = labels.add("t", label("one"))
    labels.add("t", label(""), etag=first.etag)
    with pytest.raises(ConflictError, match=r"was withdrawn.*give etag 0"):
        labels.add("t", label("two"), etag=first.etag)
    with pytest.raises(NotFoundError, match="no label of a human"):
        labels.add("t", label(""), etag=first.etag)
    assert labels.add("t", label("two"), etag="0").etag == "3"
    with pytest.raises(ConflictError, match="read the label again"):
        labels.add("t", label("three"), etag="0")


@given(turns=st.lists(st.integers(0, 2), max_size=16))
@example(turns=[0, 0, 2, 2, 2, 1, 1, 1, 1, 1, 0, 0, 0, 0])
@settings(max_examples=150, deadline=None)
def test_scores_of_a_revision_that_moves_out_are_not_lost(turns: list[int]) -> None:
    """Two writers push a revision out of its page while it is scored: a score that was kept is in the history."""
    store = open_store("memory://")
    labels = LabelStore(store, clock=lambda: 1.0)
    labels.add("t", label("scored", Origin.MODEL))
    for number in range(REVISIONS_A_FEATURE - 1):
        labels.add("t", label(f"said {number}"))
    kept: list[bool] = []
    score = Score(0.9, 0.8, 1.0, 10, 0, "m", "detection-1", "0")

    def add(text: str) -> Callable[[ObjectStore], object]:
        return lambda mine: LabelStore(mine, clock=lambda: 2.0).add("t", label(text, Origin.MODEL))

    def keep(mine: ObjectStore) -> None:
        scores = {ScoreKind.DETECTION: score}
        kept.append(LabelStore(mine, clock=lambda: 3.0).add_scores("t", FEATURE, 1, scores))

    take_turns([Program(store, add("a")), Program(store, add("b")), Program(store, keep)], turns, [], lambda: None)
    history = {each.revision: each for each in labels.history("t", FEATURE)}
    assert sorted(history) == list(range(1, REVISIONS_A_FEATURE + 3))
    assert (ScoreKind.DETECTION in history[1].scores) == kept[0]


def test_import_again_changes_nothing() -> None:
    """What is there word for word is left, what differs in any word is a new revision."""
    labels = LabelStore(open_store("memory://"))
    many = [label(f"{index}", Origin.MODEL, Place(layer, index)) for layer in (0, 10, 2) for index in (3, 300, 4)]
    assert labels.add_many("t", many).num_added == 9
    again = labels.add_many("t", [*many[:8], label("other", Origin.MODEL, many[8].place)])
    assert (again.num_added, again.num_unchanged) == (1, 8)
    assert len(labels.history("t", many[8].place)) == 2


def test_walk_goes_by_number_and_from_anywhere() -> None:
    """Layer 10 comes after layer 2 and feature 300 after feature 4; a walk goes on after any place."""
    labels = LabelStore(open_store("memory://"))
    places = [Place(layer, index) for layer in (0, 2, 10) for index in (3, 4, 256, 300)]
    labels.add_many("t", [label("x", place=place) for place in reversed(places)])
    assert [each.place for each in labels.walk("t")] == places
    assert [each.place for each in labels.walk("t", layer=2)] == places[4:8]
    for number, place in enumerate(places):
        assert [each.place for each in labels.walk("t", after=place)] == places[number + 1 :]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "characters"), ("  ", "characters"), ("x" * (MAX_TEXT + 1), "characters"), ("two\nlines", r"U\+000A"),
        ("\x1b[31mred", r"U\+001B"), ("back\u202ewards", r"U\+202E"), ("para\u2029graph", r"U\+2029"),
    ],
)  # fmt: skip
def test_text_that_is_no_line_is_refused(text: str, match: str) -> None:
    """Empty, long, several lines, and what turns a terminal's or a page's text around."""
    with pytest.raises(InvalidArgumentError, match=match):
        check_label(label(text))


def test_markup_is_text() -> None:
    """Markup, quotes, formulas and other scripts are kept to the letter."""
    store = open_store("memory://")
    for text in ("<script>alert(1)</script>", "=cmd|' /C calc'!A0", "[red]{{x}}", "数字 🙂", '"', "'"):
        LabelStore(store).add("t", check_label(label(f"  {text} ")))
        assert words(store)[-1] == text


@pytest.mark.parametrize(
    "page",
    [
        {"features": []}, {"features": {"7": {}}}, {"features": {"7": [1]}}, {"features": {"7": [{"text": "x"}]}},
        {"features": {"7": [{"text": "x", "origin": "ghost", "revision": 1, "create_s": 0}]}},
    ],
)  # fmt: skip
def test_damaged_page_is_data_loss(page: dict[str, object]) -> None:
    """A page that is not one is named as damaged, and nothing is written over it."""
    store = open_store("memory://")
    store.put(PAGE, json.dumps(page).encode())
    labels = LabelStore(store)
    for call in (lambda: labels.get("t", FEATURE), lambda: labels.add("t", label("x")), lambda: list(labels.walk("t"))):
        with pytest.raises(DataLossError):
            call()
    assert read_json(store, PAGE)[0] == page
