"""
Labels beside an index: who has one, what its scores are, which have given words in them.

Legend: N features of all layers, M labelled ones.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from weft_attribution.core.feature_index.opened import OpenIndex
from weft_attribution.core.feature_index.tables import TextColumn
from weft_attribution.core.feature_ports import FeatureLabels, LabelRecord

__all__ = ["LabelColumns", "LabelTable"]

Array = npt.NDArray[Any]
_KEPT_COLUMNS = 12
Labels = Mapping[tuple[int, int], LabelRecord]


class LabelColumns:
    """
    Labels as columns.

    Args:
        index: Whose features; labels of others are passed over.
        labels: By layer and index.
    """

    def __init__(self, index: OpenIndex, labels: Labels) -> None:
        self._labels = labels
        self._size = len(index.layer_N)
        places = [(layer, feature) for layer, feature in labels if index.has(layer, feature)]
        numbers = [index.number(layer, feature) for layer, feature in places]
        order = np.argsort(np.array(numbers, np.int64), kind="stable").tolist()
        self.number_M: Array = np.array([numbers[at] for at in order], np.int64)
        self._columns: dict[tuple[object, ...], Array] = {}
        self.label_M: list[LabelRecord] = [labels[places[at]] for at in order]

    def label(self, layer: int, feature: int) -> LabelRecord | None:
        """The label of a feature, if it has one."""
        return self._labels.get((layer, feature))

    @cached_property
    def kind_of_each(self) -> Array:
        """[N]: 0 where there is no label, 1 where a model said it, 2 where a person did."""
        kind_N = np.zeros(self._size, np.int8)
        kind_N[self.number_M] = [2 if label.origin == "human" else 1 for label in self.label_M]
        return kind_N

    def score(self, kind: str) -> Array:
        """[N]: the score of a kind, NaN where there is none."""

        def make() -> Array:
            score_N = np.full(self._size, np.nan)
            score_N[self.number_M] = [_score(label, kind) for label in self.label_M]
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
        return self.number_M[self._texts.with_all(wanted)]

    @cached_property
    def _texts(self) -> TextColumn:
        return TextColumn([label.text.lower() for label in self.label_M])


def _score(label: LabelRecord, kind: str) -> float:
    found = label.scores.get(kind)
    return float(found.value) if found is not None else float("nan")


class LabelTable:
    """
    Columns of the labels of the index asked for last, for as long as neither changes.

    Args:
        labels: Where labels come from.
    """

    def __init__(self, labels: FeatureLabels) -> None:
        self._source = labels
        self._last: tuple[OpenIndex, Labels, LabelColumns] | None = None

    def labels(self, transcoder: str) -> Labels:
        """All labels of a transcoder."""
        return self._source.labels_of(transcoder)

    def columns(self, index: OpenIndex) -> LabelColumns:
        """The labels of an index's transcoder as columns."""
        labels, last = self.labels(index.transcoder), self._last
        if last is None or last[0] is not index or last[1] is not labels:
            self._last = last = index, labels, LabelColumns(index, labels)
        return last[2]
