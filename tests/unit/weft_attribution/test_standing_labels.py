"""All labels of a transcoder at once, kept while nothing changes."""

import random
from collections.abc import Iterator

from weft_attribution.core.label_store import LabelStore
from weft_attribution.core.labels import Label, Origin, Place, Score, ScoreKind
from weft_attribution.core.standing_labels import StandingLabels
from weft_store import ObjectStore, open_store
from weft_store.port import ObjectInfo


class CoarseClock:
    """A bucket whose times never move, as of two writes within one tick, and which counts what is read."""

    def __init__(self, store: ObjectStore) -> None:
        self._store, self.reads = store, 0

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        for info in self._store.list(prefix):
            yield ObjectInfo(info.key, info.size_bytes, "", 1_000.0)

    def get_with_info(self, key: str) -> tuple[bytes, ObjectInfo]:
        self.reads += 1
        return self._store.get_with_info(key)


def test_labels_are_those_that_stand_after_any_change() -> None:
    """After each of many changes, the same as reading every feature by itself, scores too."""
    store, rng = open_store("memory://"), random.Random(0)
    labels, standing = LabelStore(store), StandingLabels(store)
    places = [Place(layer, index) for layer in (0, 3) for index in (0, 255, 256, 700)]
    for number in range(60):
        place, origin = rng.choice(places), rng.choice(list(Origin))
        there = labels.get("t", place).label(origin)
        if there is not None and rng.random() < 0.3:
            labels.add("t", Label(place, "", origin))
        elif there is not None and rng.random() < 0.3:
            labels.add_scores(
                "t", place, there.revision, {ScoreKind.DETECTION: Score(number / 60, 0, 1, 9, 0, "m", "", "")}
            )
        else:
            labels.add("t", Label(place, f"text {number}", origin))
        wanted = {place: label for place in places if (label := labels.get("t", place).label()) is not None}
        assert dict(standing.labels_of("t")) == wanted
    assert dict(standing.labels_of("other")) == {}


def test_same_object_while_nothing_changes() -> None:
    """What is derived from it can be kept; a change gives another object."""
    store = open_store("memory://")
    LabelStore(store).add("t", Label(Place(0, 1), "x"))
    standing = StandingLabels(store)
    first = standing.labels_of("t")
    assert standing.labels_of("t") is first
    LabelStore(store).add("t", Label(Place(0, 1), "y"))
    assert standing.labels_of("t") is not first
    assert first[0, 1].text == "x"


def test_pages_that_are_long_written_are_read_once() -> None:
    """A page written just now is looked at again, since a second write may bear the same time; an old one is not."""
    store, now = open_store("memory://"), [1_001.0]
    LabelStore(store).add("t", Label(Place(0, 1), "x"))
    coarse = CoarseClock(store)
    standing = StandingLabels(coarse, clock=lambda: now[0])  # type: ignore[arg-type]  # it lists and reads
    assert standing.labels_of("t")[0, 1].text == "x"
    LabelStore(store).add("t", Label(Place(0, 1), "", Origin.HUMAN))
    LabelStore(store).add("t", Label(Place(0, 1), "y"))
    assert standing.labels_of("t")[0, 1].text == "y"
    now[0] = 1_010.0
    standing.labels_of("t")
    reads = coarse.reads
    assert standing.labels_of("t")[0, 1].text == "y"
    assert coarse.reads == reads
