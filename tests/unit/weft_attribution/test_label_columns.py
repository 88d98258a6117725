"""Labels as columns, brought up to date: as if they had been made anew."""

from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from weft_attribution.core.feature_index.labelled import LabelColumns, LabelTable
from weft_attribution.core.label_blocks import FEATURES_A_BLOCK, LabelBlock, LabelBlocks, StandingLabel, StandingScore

# Layer 1 is shorter than its labels, layer 3 is not in the index.
SIZES = (2 * FEATURES_A_BLOCK + 10, 5, FEATURES_A_BLOCK)
PLACES = [(0, 0), (0, 7), (0, FEATURES_A_BLOCK), (0, 2 * FEATURES_A_BLOCK + 9), (1, 4), (1, 5), (2, 1), (3, 0)]
Said = dict[tuple[int, int], StandingLabel]
LABELS = st.builds(
    StandingLabel,
    st.sampled_from(["a digit", "Straße", "a DIGIT in code", ""]),
    st.sampled_from(["human", "model"]),
    st.sampled_from(["", "m"]),
    st.sampled_from(["", "0"]),
    st.dictionaries(
        st.sampled_from(["detection", "fuzzing"]),
        st.builds(StandingScore, st.sampled_from([0.0, 0.5, 1.0]), st.integers(1, 9)),
    ),
)
SAID = st.dictionaries(st.sampled_from(PLACES), LABELS)


class Index:
    """As much of an index as columns look at."""

    transcoder = "t"

    def __init__(self) -> None:
        self.first_L = np.concatenate([[0], np.cumsum(SIZES)])
        self.layer_N = np.repeat(np.arange(len(SIZES)), SIZES)


def index() -> Any:
    return Index()


def told(columns: LabelColumns, index: Any) -> dict[tuple[int, int], Any]:
    """What the columns say of each feature, one by one."""
    found = {}
    for number in np.flatnonzero(columns.kind_of_each).tolist():
        layer = int(index.layer_N[number])
        scores = {kind: columns.score(kind)[number] for kind in ("detection", "fuzzing")}
        said = {kind: float(value) for kind, value in scores.items() if not np.isnan(value)}
        found[layer, number - int(index.first_L[layer])] = (int(columns.kind_of_each[number]), said)
    return found


def changed(before: LabelBlocks, said: Said) -> LabelBlocks:
    """Other labels, where blocks that are as before are the same objects."""
    after = LabelBlocks.of(said)
    same = {
        place: before.blocks[place]
        for place, block in after.blocks.items()
        if place in before.blocks and before.blocks[place].labels() == block.labels()
    }
    return LabelBlocks({**after.blocks, **same})


@given(st.lists(SAID, min_size=1, max_size=4))
@settings(deadline=None)
def test_columns_brought_up_to_date_tell_what_is_said(each: list[Said]) -> None:
    """After any changes: kinds, scores, orders and words are those of the labels, looked at one by one."""
    there, labels = index(), LabelBlocks({})
    columns = LabelColumns(there, labels)
    for said in each:
        # Those that were asked for are what is brought up to date.
        columns.score("detection")
        labels = changed(labels, said)
        columns = LabelColumns(there, labels, columns)
        assert dict(labels) == said
        known = {place: label for place, label in said.items() if place[0] < 3 and place[1] < SIZES[place[0]]}
        wanted = {
            place: ({"model": 1, "human": 2}[label.origin], {kind: score.value for kind, score in label.scores.items()})
            for place, label in known.items()
        }
        assert told(columns, there) == wanted
        with_words = [place for place in sorted(known) if "digit" in known[place].text.lower()]
        numbers = [int(there.first_L[layer]) + feature for layer, feature in with_words]
        assert columns.find("DIGIT").tolist() == numbers
        scored = [place for place in sorted(known) if "detection" in known[place].scores]
        ranked = sorted(scored, key=lambda place: -known[place].scores["detection"].value)
        order = columns.order("detection", falling=True)[: len(ranked)]
        assert order.tolist() == [int(there.first_L[layer]) + feature for layer, feature in ranked]


def test_columns_of_an_index_outlive_questions_about_another() -> None:
    """Questions that change between two transcoders make nothing anew; an index that is gone holds nothing."""
    labels = LabelBlocks.of({(0, 1): StandingLabel("x", "human", "", "", {})})

    class Source:
        async def ready(self, transcoder: str) -> None:
            return

        def labels_of(self, transcoder: str) -> LabelBlocks:
            return labels

    table, one, other = LabelTable(Source()), index(), index()
    first = table.columns(one)
    table.columns(other)
    assert table.columns(one) is first
    small = LabelTable(Source(), memory_bytes=1)
    first = small.columns(one)
    assert small.columns(one) is first
    small.columns(other)
    assert small.columns(one) is not first


def test_columns_that_did_not_change_are_not_gone_through(monkeypatch: Any) -> None:
    """A label said in one block is a look at that block."""
    said = {(layer, 1): StandingLabel("x", "model", "", "", {}) for layer in range(3)}
    there, labels = index(), LabelBlocks.of(said)
    columns, looked = LabelColumns(there, labels), []
    plain = LabelColumns._numbers

    def numbers(self: LabelColumns, place: tuple[int, int], block: LabelBlock) -> Any:
        looked.append(place)
        return plain(self, place, block)

    monkeypatch.setattr(LabelColumns, "_numbers", numbers)
    blocks = {**labels.blocks, (1, 0): LabelBlock({2: SimpleNamespace(**said[1, 1]._asdict())})}
    after = LabelColumns(there, LabelBlocks(blocks), columns)
    assert set(looked) == {(1, 0)}
    assert np.flatnonzero(after.kind_of_each).tolist() == [1, SIZES[0] + 2, SIZES[0] + SIZES[1] + 1]
