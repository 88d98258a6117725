"""Features by their labels and scores, against loops over the same labels."""

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from index_rig import IndexRig

from weft_attribution.core.feature_index.indexing import FeatureIndexing
from weft_attribution.core.feature_index.labelled import LabelTable
from weft_attribution.core.feature_index.open_indexes import OpenIndexes
from weft_attribution.core.feature_index.queries import Bounds, FeatureFilter, FeatureQueries, FoundFeatures, Question
from weft_attribution.core.label_blocks import LabelBlocks
from weft_common.errors import InvalidArgumentError
from weft_store.opening import open_store

WORDS = ("Opening bracket", "digit", "closing BRACKET after a digit", "Straße", "a  wide   gap", "100% [x]*")


class Labels:
    """A label for two features in three, and for one that is not there."""

    def __init__(self, num_features: int) -> None:
        rng = np.random.default_rng(5)
        self.all: dict[tuple[int, int], Any] = {(9, 9): _label("bracket", "human", 0.1)}
        for layer in range(2):
            for feature in rng.permutation(num_features).tolist():
                if (layer + feature) % 3:
                    score = float(rng.integers(0, 5)) / 4 if feature % 2 else None
                    self.all[layer, feature] = _label(WORDS[feature % 6], "human" if feature % 4 else "model", score)

        self._made: tuple[Any, LabelBlocks] | None = None

    async def ready(self, transcoder: str) -> None:
        return

    def labels_of(self, transcoder: str) -> LabelBlocks:
        if self._made is None or self._made[0] is not self.all:
            self._made = self.all, LabelBlocks.of(self.all)
        return self._made[1]


def _label(text: str, origin: str, score: float | None) -> Any:
    scores = {} if score is None else {"detection": SimpleNamespace(value=score, n=10)}
    return SimpleNamespace(text=text, origin=origin, scores=scores, explainer="", prompt_sha256="")


@pytest.fixture
def rig() -> tuple[FeatureQueries, Labels]:
    made = IndexRig.make(open_store("memory://"), num_features=24)
    runner: Any = None
    indexing = FeatureIndexing(made.store, runner, made, memory_bytes=1 << 30, workers=1)
    asyncio.run(indexing.build(made.request(), lambda done, total: None))
    labels = Labels(24)
    return FeatureQueries(OpenIndexes(made.store), LabelTable(labels)), labels


def places(found: FoundFeatures) -> list[tuple[int, int]]:
    return [(int(found.index.layer_N[n]), int(found.index.index_N[n])) for n in found.numbers]


EVERY = [(layer, feature) for layer in range(2) for feature in range(24)]


@pytest.mark.parametrize(
    ("state", "wanted"),
    [
        ("labelled", lambda label: label is not None),
        ("unlabelled", lambda label: label is None),
        ("human", lambda label: label is not None and label.origin == "human"),
        ("model", lambda label: label is not None and label.origin == "model"),
    ],
)
def test_label_state_takes_what_is_labelled_so(rig: tuple[FeatureQueries, Labels], state: str, wanted: Any) -> None:
    """Who said it, or whether anybody has."""
    queries, labels = rig
    found = queries.list(Question("t", FeatureFilter(label_state=state), page_size=100))
    assert places(found) == [place for place in EVERY if wanted(labels.all.get(place))]
    assert found.total == len(found.numbers)


@pytest.mark.parametrize("order", ["score", "score desc"])
def test_scores_bound_and_order(rig: tuple[FeatureQueries, Labels], order: str) -> None:
    """Bounds leave out what has no such score; orders have it last; pages join to the whole."""
    queries, labels = rig
    score = {
        place: label.scores["detection"].value for place, label in labels.all.items() if label.scores and place in EVERY
    }
    sign = -1 if order.endswith("desc") else 1
    ranked = sorted(score, key=lambda place: (sign * score[place], place))
    bounded = FeatureFilter(score_kind="detection", score=Bounds(0.5, 0.75))
    found = queries.list(Question("t", bounded, order, page_size=100))
    assert places(found) == [place for place in ranked if 0.5 <= score[place] <= 0.75]
    every: list[tuple[int, int]] = []
    token = ""
    while True:
        page = queries.list(Question("t", FeatureFilter(score_kind="detection"), order, 7, token))
        every += places(page)
        token = page.next_token
        if not token:
            break
    assert every == ranked + [place for place in EVERY if place not in score]
    other = queries.list(Question("t", FeatureFilter(score_kind="fuzzing", score=Bounds(0.0, 1.0)), page_size=100))
    assert not len(other.numbers)


@pytest.mark.parametrize("words", ["bracket", "BRACKET digit", "straße", "wide gap", "[x]*", "100%", "absent", "a"])
def test_words_are_found_whatever_their_case(rig: tuple[FeatureQueries, Labels], words: str) -> None:
    """All of the words must stand in the label, as text and not as a pattern."""
    queries, labels = rig
    found = queries.by_label(Question("t", page_size=100), words)
    wanted = [
        place
        for place in EVERY
        if place in labels.all and all(word in labels.all[place].text.lower() for word in words.lower().split())
    ]
    assert places(found) == wanted


def test_labels_are_read_anew_when_they_change(rig: tuple[FeatureQueries, Labels]) -> None:
    """Another mapping is another table; the same one is not gone through again."""
    queries, labels = rig
    first = queries.labels.columns(queries.indexes.open("t"))
    assert queries.labels.columns(queries.indexes.open("t")) is first
    labels.all = {(1, 2): _label("fresh words", "human", None)}
    assert places(queries.by_label(Question("t"), "fresh")) == [(1, 2)]


@pytest.mark.parametrize("words", ["", "  ", "x" * 501])
def test_searches_without_words_are_refused(rig: tuple[FeatureQueries, Labels], words: str) -> None:
    """Nothing, or too much."""
    with pytest.raises(InvalidArgumentError, match="give a word or more"):
        rig[0].by_label(Question("t"), words)


def test_kinds_of_scores_do_not_mix_with_orders(rig: tuple[FeatureQueries, Labels]) -> None:
    """A kind that nobody has, by the name that an order might be kept under, changes no order."""
    queries, _ = rig
    odd = FeatureFilter(score_kind="detection True", score=Bounds(0.0, 1.0))
    assert not places(queries.list(Question("t", odd)))
    ordered = queries.list(Question("t", FeatureFilter(score_kind="detection"), "score desc", 100))
    assert sorted(places(ordered)) == EVERY


@pytest.mark.parametrize("order", ["", "density desc"])
def test_skip_passes_over_features_from_where_the_token_is(rig: tuple[FeatureQueries, Labels], order: str) -> None:
    """Any place is reached at once, by itself and after a token; beyond the last there is nothing, and no next page."""
    queries, _ = rig
    everything = places(queries.list(Question("t", order_by=order, page_size=100)))
    for skip in (0, 1, 17, 47, 48, 2**31 - 1):
        found = queries.list(Question("t", order_by=order, page_size=5, skip=skip))
        assert places(found) == everything[skip : skip + 5]
        assert found.total == 48
        assert bool(found.next_token) == (skip + 5 < 48)
    first = queries.list(Question("t", order_by=order, page_size=5, skip=10))
    second = queries.list(Question("t", order_by=order, page_size=5, page_token=first.next_token, skip=2))
    assert places(second) == everything[17:22]
    with pytest.raises(InvalidArgumentError, match="skip is -1"):
        queries.list(Question("t", skip=-1))
