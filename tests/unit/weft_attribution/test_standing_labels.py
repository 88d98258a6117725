"""All labels of a transcoder at once: whose writes are in an answer, what is read for it, and who waits."""

import asyncio
import random
import threading
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from weft_attribution.core.label_blocks import LabelBlocks
from weft_attribution.core.label_store import LabelStore
from weft_attribution.core.labels import Label, Origin, Place, Score, ScoreKind
from weft_attribution.core.standing_labels import StandingLabels
from weft_attribution.label_trailers import PASSED_OVER, tell_passed_over
from weft_common.errors import DataLossError, UnavailableError
from weft_store import ObjectStore, open_store
from weft_store.port import ObjectInfo

PAGE = "features/t/labels/0000/0000000.json"
ELSEWHERE = b'{"features": {"999": []}}'
BROKEN_TEXT = b'{"features": {"1": [{"text": "\\ud800", "origin": "human", "revision": 1, "create_s": 1.0}]}}'


class Watched:
    """A bucket whose times are set, which counts what is asked of it, and which can be held up or broken."""

    def __init__(self, store: ObjectStore) -> None:
        self._store, self.lists, self.reads = store, 0, 0
        self.times: dict[str, float] = {}
        self.open, self.is_broken = threading.Event(), False
        self.open.set()

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self.lists += 1
        self.open.wait(20)
        if self.is_broken:
            raise UnavailableError("the bucket cannot be reached")
        for info in self._store.list(prefix):
            yield ObjectInfo(info.key, info.size_bytes, "", self.times.get(info.key, 1_000.0))

    def get_with_info(self, key: str) -> tuple[bytes, ObjectInfo]:
        self.reads += 1
        return self._store.get_with_info(key)


def watched() -> tuple[ObjectStore, Any, list[float]]:
    store = open_store("memory://")
    return store, Watched(store), [0.0]


def shown(labels: Mapping[tuple[int, int], Any]) -> dict[tuple[int, int], Any]:
    """All that questions look at."""
    return {
        (place[0], place[1]): (
            label.text,
            str(label.origin),
            label.explainer,
            label.prompt_sha256,
            {str(kind): (score.value, score.n) for kind, score in label.scores.items()},
        )
        for place, label in labels.items()
    }


@pytest.mark.parametrize("is_own", [True, False])
def test_labels_are_those_that_stand_after_any_change(is_own: bool) -> None:
    """After each of many changes, the same as every feature by itself: of one's own at once, of others a look later."""
    store, rng, now = open_store("memory://"), random.Random(0), [0.0]
    standing = StandingLabels(store, clock=lambda: now[0])
    labels = LabelStore(store, changed=standing.changed) if is_own else LabelStore(store)
    places = [Place(layer, index) for layer in (0, 3) for index in (0, 255, 256, 700, 5000)]
    for number in range(60):
        place, origin = rng.choice(places), rng.choice(list(Origin))
        there = labels.get("t", place).label(origin)
        if there is not None and rng.random() < 0.3:
            labels.add("t", Label(place, "", origin))
        elif there is not None and rng.random() < 0.3:
            scores = {ScoreKind.DETECTION: Score(number / 60, 0, 1, 9, 0, "m", "", "")}
            labels.add_scores("t", place, there.revision, scores)
        else:
            labels.add("t", Label(place, f"text {number}", origin, explainer=f"m{number % 3}"))
        now[0] += 0.0 if is_own else 6.0
        wanted = {place: label for place in places if (label := labels.get("t", place).label()) is not None}
        assert shown(standing.labels_of("t")) == shown(wanted)
    assert shown(standing.labels_of("other")) == {}


def test_same_object_while_nothing_changes() -> None:
    """What is derived from it can be kept; a change gives another object, with the blocks that did not change."""
    store, now = open_store("memory://"), [0.0]
    standing = StandingLabels(store, clock=lambda: now[0])
    labels = LabelStore(store, changed=standing.changed)
    labels.add_many("t", [Label(Place(0, 1), "x"), Label(Place(0, 300), "y"), Label(Place(1, 1), "z")])
    first = standing.labels_of("t")
    now[0] += 60.0
    assert standing.labels_of("t") is first
    labels.add("t", Label(Place(0, 1), "w"))
    second = standing.labels_of("t")
    assert [second[0, 1].text, second[0, 300].text, first[0, 1].text] == ["w", "y", "x"]
    assert second.blocks[1, 0] is first.blocks[1, 0]
    assert second.blocks[0, 0] is not first.blocks[0, 0]


def test_bucket_is_listed_once_for_all_who_ask_within_a_look() -> None:
    """A hundred questions within a second cost one listing; labels that are too old are waited for."""
    store, bucket, now = watched()
    LabelStore(store).add("t", Label(Place(0, 1), "x"))
    standing = StandingLabels(bucket, clock=lambda: now[0])
    for _ in range(100):
        assert standing.labels_of("t")[0, 1].text == "x"
        now[0] += 0.009
    assert bucket.lists == 1
    LabelStore(store).add("t", Label(Place(0, 1), "by another replica"))
    now[0] += 5.0
    assert standing.labels_of("t")[0, 1].text == "by another replica"
    assert bucket.lists == 2


async def test_cold_labels_hold_up_nobody_else() -> None:
    """While labels are read for many questions, the loop's own threads are free: heartbeats go through them."""
    store, bucket, _ = watched()
    LabelStore(store).add("t", Label(Place(0, 1), "x"))
    standing = StandingLabels(bucket)
    bucket.open.clear()
    asking = [asyncio.create_task(standing.ready("t")) for _ in range(100)]
    try:
        assert await asyncio.wait_for(asyncio.to_thread(lambda: "beat"), 10) == "beat"
        assert not any(each.done() for each in asking)
    finally:
        bucket.open.set()
    await asyncio.gather(*asking)
    assert bucket.lists == 1
    assert standing.labels_of("t")[0, 1].text == "x"


async def test_labels_of_the_last_look_answer_while_the_next_is_under_way() -> None:
    """Neither is a question that gives up anybody else's loss."""
    store, bucket, now = watched()
    LabelStore(store).add("t", Label(Place(0, 1), "x"))
    standing = StandingLabels(bucket, clock=lambda: now[0])
    await standing.ready("t")
    now[0] = 2.0
    bucket.open.clear()
    await asyncio.wait_for(standing.ready("t"), 10)
    assert standing.labels_of("t")[0, 1].text == "x"
    now[0] = 8.0
    gone, waiting = asyncio.create_task(standing.ready("t")), asyncio.create_task(standing.ready("t"))
    await asyncio.sleep(0)
    gone.cancel()
    bucket.open.set()
    await waiting
    await asyncio.wait({gone})
    assert gone.cancelled()


def test_write_during_a_refresh_is_in_the_next_answer() -> None:
    """A refresh that began before may have missed it."""
    store, bucket, now = watched()
    standing = StandingLabels(bucket, clock=lambda: now[0])
    labels = LabelStore(store, changed=standing.changed)
    labels.add("t", Label(Place(0, 1), "x"))
    assert standing.labels_of("t")[0, 1].text == "x"
    now[0] = 2.0
    plain = bucket.get_with_info

    def written_meanwhile(key: str) -> Any:
        bucket.get_with_info = plain
        found = plain(key)
        labels.add("t", Label(Place(0, 1), "meanwhile"))
        return found

    labels.add("t", Label(Place(0, 1), "y"))
    bucket.get_with_info = written_meanwhile
    assert standing.labels_of("t")[0, 1].text in ("y", "meanwhile")
    assert standing.labels_of("t")[0, 1].text == "meanwhile"


def test_second_write_within_a_tick_of_the_bucket_is_seen() -> None:
    """It bears the same time and size; whatever the wall clock here says, the page is looked at until it cannot."""
    store, bucket, now = watched()
    LabelStore(store, clock=lambda: 1.0).add("t", Label(Place(0, 1), "x"))
    standing = StandingLabels(bucket, clock=lambda: now[0])
    assert standing.labels_of("t")[0, 1].text == "x"
    store.put(PAGE, store.get(PAGE).replace(b'"x"', b'"y"'))
    now[0] = 5.5
    assert standing.labels_of("t")[0, 1].text == "y"
    now[0] = 11.0
    standing.labels_of("t")
    reads = bucket.reads
    now[0] = 17.0
    assert standing.labels_of("t")[0, 1].text == "y"
    assert bucket.reads == reads


def test_page_older_than_another_is_read_once() -> None:
    """Times of the bucket tell each other's age: only what was written lately is read again."""
    store, bucket, now = watched()
    LabelStore(store).add_many("t", [Label(Place(0, 1), "old"), Label(Place(0, 300), "new")])
    bucket.times = {PAGE: 1_000.0, "features/t/labels/0000/0000001.json": 1_010.0}
    standing = StandingLabels(bucket, clock=lambda: now[0])
    standing.labels_of("t")
    assert bucket.reads == 2
    now[0] = 6.0
    standing.labels_of("t")
    assert bucket.reads == 3


@pytest.mark.parametrize(
    "damage", [b"{", b'{"features": {"1": [{"text": 3}]}}', ELSEWHERE, b'{"features": 1}', BROKEN_TEXT]
)
def test_damaged_page_is_passed_over_and_named(damage: bytes) -> None:
    """Labels of other pages answer; whoever asks for one of its own is told which object it is."""
    store, now = open_store("memory://"), [0.0]
    labels = LabelStore(store)
    labels.add_many("t", [Label(Place(0, 1), "x"), Label(Place(0, 300), "y"), Label(Place(2, 1), "z")])
    standing = StandingLabels(store, clock=lambda: now[0])
    assert standing.labels_of("t").damaged == ()
    whole = store.get(PAGE)
    store.put(PAGE, damage)
    now[0] = 6.0
    found = standing.labels_of("t")
    assert found.damaged == (PAGE,)
    assert {place: label.text for place, label in found.items()} == {(0, 300): "y", (2, 1): "z"}
    if damage not in (BROKEN_TEXT, ELSEWHERE):
        with pytest.raises(DataLossError, match=PAGE):
            labels.get("t", Place(0, 1))
    store.put(PAGE, whole)
    now[0] = 12.0
    assert standing.labels_of("t").damaged == ()
    assert standing.labels_of("t")[0, 1].text == "x"


def test_bucket_that_fails_is_told_and_asked_again() -> None:
    """What was written meanwhile is not forgotten."""
    store, bucket, now = watched()
    standing = StandingLabels(bucket, clock=lambda: now[0])
    labels = LabelStore(store, changed=standing.changed)
    labels.add("t", Label(Place(0, 1), "x"))
    standing.labels_of("t")
    labels.add("t", Label(Place(0, 1), "y"))
    now[0], bucket.is_broken = 2.0, True
    with pytest.raises(UnavailableError):
        standing.labels_of("t")
    bucket.is_broken = False
    assert standing.labels_of("t")[0, 1].text == "y"


def test_labels_beyond_the_budget_are_let_go() -> None:
    """Those of the transcoder asked for last stay; others are read again."""
    store, bucket, now = watched()
    for name in ("a", "b"):
        LabelStore(store).add(name, Label(Place(0, 1), name))
    standing = StandingLabels(bucket, memory_bytes=1, clock=lambda: now[0])
    for name in ("a", "a", "b", "a"):
        assert standing.labels_of(name)[0, 1].text == name
    assert bucket.reads == 3


async def test_answers_name_pages_that_were_passed_over() -> None:
    """In the trailer, where there are any."""
    told: list[Any] = []
    context: Any = SimpleNamespace(set_trailing_metadata=told.append)
    tell_passed_over(context, LabelBlocks({}))
    assert told == []
    tell_passed_over(context, LabelBlocks({}, [f"page{number}" for number in range(30)]))
    [[(key, value)]] = told
    assert (key, value.split(",")) == (PASSED_OVER, [f"page{number}" for number in range(20)])
