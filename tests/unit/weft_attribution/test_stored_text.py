"""Text behind an index that is too long for memory: how it is read."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from index_rig import IndexRig

from weft_attribution.core.feature_index import stored_text
from weft_attribution.core.feature_index.indexing import FeatureIndexing
from weft_attribution.core.feature_index.open_indexes import OpenIndexes
from weft_attribution.core.feature_index.opened import OpenIndex
from weft_attribution.core.interpretation.examples import is_held_out
from weft_store import ObjectStore, open_store


class Counted:
    """A bucket that counts reads of the text."""

    def __init__(self, store: ObjectStore) -> None:
        self._store, self.ranges, self.wholes = store, 0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        if key.endswith("tokens.bin"):
            self.ranges, self.wholes = self.ranges + (length is not None), self.wholes + (length is None)
        return self._store.get(key, offset=offset, length=length)


def opened(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Callable[[], OpenIndex]]:
    made = IndexRig.make(open_store("memory://"), num_features=12)
    runner: Any = None
    indexing = FeatureIndexing(made.store, runner, made, memory_bytes=1 << 30, workers=1)
    asyncio.run(indexing.build(made.request(), lambda done, total: None))
    store: Any = Counted(made.store)
    return store, lambda: OpenIndexes(store).open("t")


@pytest.mark.parametrize("gap", [0, 8, 1 << 20])
def test_long_text_is_read_by_shared_ranges_as_if_it_were_in_memory(monkeypatch: pytest.MonkeyPatch, gap: int) -> None:
    """The same windows; those that lie near each other come by one request."""
    store, again = opened(monkeypatch)
    held = again()
    wanted = [(held.examples(0, feature), held.quiet(0, feature, 5)) for feature in range(12)]
    monkeypatch.setattr(stored_text, "_KEPT_TOKEN_BYTES", 0)
    monkeypatch.setattr(stored_text, "_GAP_TOKENS", gap)
    far = again()
    far.quiet(0, 0, 1)
    store.ranges = store.wholes = 0
    assert [(far.examples(0, feature), far.quiet(0, feature, 5)) for feature in range(12)] == wanted
    assert store.wholes == 0
    assert store.ranges
    if gap > 8:
        # Those active most, those by quantile, and those that are quiet.
        assert store.ranges <= 3 * 12


def test_pool_of_quiet_windows_is_drawn_once_for_all_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes over the whole text."""
    _, again = opened(monkeypatch)
    drawn, plain, together = [], stored_text.draw_tiles, threading.Barrier(4)
    monkeypatch.setattr(stored_text, "draw_tiles", lambda *given: drawn.append(1) or plain(*given))
    text, found = again().text, []

    def ask() -> None:
        together.wait(20)
        found.append(text.pool_starts)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(drawn) == 1
    assert len(found) == 4
    assert all(np.array_equal(each, found[0]) for each in found)


def test_windows_of_one_text_fall_on_one_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a sequence, overlapping or not, and those of another with the same tokens; and there are two sides."""
    store, again = opened(monkeypatch)
    keys = again().request.keys
    tokens = np.frombuffer(store.get(keys.text("tokens.bin")), "<u4")
    starts = np.frombuffer(store.get(keys.text("starts.bin")), "<i8")
    # Sequence 1 begins as sequence 0 does, with all that the shorter one has.
    size = int(min(starts[1], starts[2] - starts[1]))
    doubled = np.concatenate([tokens[:size], tokens[:size], tokens[starts[2] :]])
    store.put(keys.text("tokens.bin"), doubled.tobytes())
    moved = np.concatenate([[0, size], starts[2:] - (starts[2] - 2 * size)]).astype("<i8")
    store.put(keys.text("starts.bin"), moved.tobytes())
    text, width = again().text, again().request.settings.window_tokens
    positions = list(range(0, int(moved[-1]), 3))
    found = text.windows(positions, [1.0] * len(positions), [0.5] * len(positions) * width, by_quantile=True)
    sides: dict[int, set[bool]] = {}
    for window in found:
        sides.setdefault(0 if window.sequence == 1 else window.sequence, set()).add(is_held_out(window))
    assert all(len(each) == 1 for each in sides.values())
    assert {side for each in sides.values() for side in each} == {True, False}
