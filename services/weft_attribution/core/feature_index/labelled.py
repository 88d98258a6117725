"""
Labels beside an index: who has one, what its scores are, which have given words in them.

Legend: N features of all layers, M labelled ones of a block.
"""

import asyncio
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from weft_attribution.core.feature_index.opened import OpenIndex
from weft_attribution.core.feature_ports import LabelRecord
from weft_attribution.core.label_blocks import FeatureLabels, LabelBlock, LabelBlocks

__all__ = ["LabelColumns", "LabelTable"]

Array = npt.NDArray[Any]
_KEPT_COLUMNS = 12


class LabelColumns:
    """
    Labels as columns. What was worked out once is kept.

    Args:
        index: Whose features; labels of others are passed over.
        labels: All of its transcoder.
        before: Of the same index with earlier labels: what did not change since is taken from there.
    """

    def __init__(self, index: OpenIndex, labels: LabelBlocks, before: "LabelColumns | None" = None) -> None:
        self.labels = labels
        self._first_L, self._size = index.first_L, len(index.layer_N)
        self._columns: dict[tuple[object, ...], Array] = {}
        # 0 where there is no label, 1 where a model said it, 2 where a person did.
        if before is None:
            self.kind_of_each: Array = np.zeros(self._size, np.int8)
            changed = list(labels.blocks)
        else:
            self.kind_of_each = before.kind_of_each.copy()
            places = labels.blocks.keys() | before.labels.blocks.keys()
            changed = [place for place in places if labels.blocks.get(place) is not before.labels.blocks.get(place)]
            self._columns = {key: column.copy() for key, column in before.scores().items()}
        for place in changed:
            self._put(place, None if before is None else before.labels.blocks.get(place), labels.blocks.get(place))

    def _put(self, place: tuple[int, int], old: LabelBlock | None, new: LabelBlock | None) -> None:
        """Have the columns tell another block in the place of one."""
        if old is not None:
            number_M, _ = self._numbers(place, old)
            self.kind_of_each[number_M] = 0
            for score_N in self._columns.values():
                score_N[number_M] = np.nan
        if new is not None:
            number_M, count = self._numbers(place, new)
            self.kind_of_each[number_M] = new.kind_M[:count]
            for (_, kind), score_N in self._columns.items():
                if kind in new.score_M:
                    score_N[number_M] = new.score_M[str(kind)][:count]

    def _numbers(self, place: tuple[int, int], block: LabelBlock) -> tuple[Array, int]:
        """[M]: numbers of a block's features, and how many these are: all that the index has."""
        layer = place[0]
        if layer >= len(self._first_L) - 1:
            return np.zeros(0, np.int64), 0
        first, end = int(self._first_L[layer]), int(self._first_L[layer + 1])
        count = int(np.searchsorted(block.index_M, end - first))
        return first + block.index_M[:count].astype(np.int64), count

    @property
    def num_bytes(self) -> int:
        """What they take; labels themselves aside."""
        return int(self.kind_of_each.nbytes) + sum(column.nbytes for column in list(self._columns.values()))

    def scores(self) -> dict[tuple[object, ...], Array]:
        """[N]: the columns of scores that were asked for."""
        return {key: column for key, column in list(self._columns.items()) if key[0] == "score"}

    def label(self, layer: int, feature: int) -> LabelRecord | None:
        """The label of a feature, if it has one."""
        return self.labels.get((layer, feature))

    def score(self, kind: str) -> Array:
        """[N]: the score of a kind, NaN where there is none."""

        def make() -> Array:
            score_N = np.full(self._size, np.nan)
            for place, block in self.labels.blocks.items():
                if kind in block.score_M:
                    number_M, count = self._numbers(place, block)
                    score_N[number_M] = block.score_M[kind][:count]
            return score_N

        return self._kept(("score", kind), make)

    def order(self, kind: str, *, falling: bool) -> Array:
        """Numbers of all features by a score, those without one last; of equals the first comes first."""

        def make() -> Array:
            score_N = self.score(kind)
            there = np.flatnonzero(~np.isnan(score_N))
            values = score_N[there]
            first = there[np.argsort(-values if falling else values, kind="stable")]
            return np.concatenate([first, np.flatnonzero(np.isnan(score_N))]).astype(np.int32)

        return self._kept(("order", kind, falling), make)

    def _kept(self, key: tuple[object, ...], make: Callable[[], Array]) -> Array:
        """A column that is worked out once, as long as few others are asked for."""
        found = self._columns.get(key)
        if found is None:
            found = make()
            if len(self._columns) >= _KEPT_COLUMNS:
                self._columns = {}
            self._columns[key] = found
        return found

    def find(self, words: str) -> Array:
        """Numbers of the features whose label has all words in it, rising."""
        # Long words leave fewer labels for those after them.
        wanted = sorted(set(words.lower().split()), key=len, reverse=True)
        return np.concatenate([np.zeros(0, np.int64), *self._found(wanted)])

    def _found(self, wanted: list[str]) -> Iterator[Array]:
        for place, block in self.labels.blocks.items():
            if place[0] < len(self._first_L) - 1:
                number_M = int(self._first_L[place[0]]) + block.find(wanted).astype(np.int64)
                yield number_M[number_M < self._first_L[place[0] + 1]]


class LabelTable:
    """
    Columns of labels for the indexes that are asked for, brought up to date where labels change.

    Args:
        labels: Where labels come from.
        memory_bytes: What columns may take; those asked for last are kept in any case.
    """

    def __init__(self, labels: FeatureLabels, *, memory_bytes: int = 256 << 20) -> None:
        self._source, self._memory_bytes = labels, memory_bytes
        self._kept: OrderedDict[int, tuple[weakref.ref[OpenIndex], LabelColumns]] = OrderedDict()
        self._lock = threading.Lock()

    async def ready(self, transcoder: str) -> None:
        """Wait until questions about a transcoder's labels need not."""
        await self._source.ready(transcoder)

    async def labels(self, transcoder: str) -> LabelBlocks:
        """All labels of a transcoder."""
        await self.ready(transcoder)
        return await asyncio.to_thread(self._source.labels_of, transcoder)

    def columns(self, index: OpenIndex) -> LabelColumns:
        """The labels of an index's transcoder as columns; blocks where `ready` was not awaited."""
        labels = self._source.labels_of(index.transcoder)
        with self._lock:
            there, before = self._kept.get(id(index), (None, None))
        if there is None or there() is not index:
            before = None
        if before is not None and before.labels is labels:
            with self._lock:
                if id(index) in self._kept:
                    self._kept.move_to_end(id(index))
            return before
        columns = LabelColumns(index, labels, before)
        with self._lock:
            self._kept[id(index)] = weakref.ref(index), columns
            self._kept.move_to_end(id(index))
            for key in [key for key, (of, _) in self._kept.items() if of() is None]:
                del self._kept[key]
            held = sum(each.num_bytes for _, each in self._kept.values())
            while len(self._kept) > 1 and held > self._memory_bytes:
                held -= self._kept.popitem(last=False)[1][1].num_bytes
        return columns
