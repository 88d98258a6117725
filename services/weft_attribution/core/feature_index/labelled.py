"""
Labels beside an index: who has one, what its scores are, which have given words in them.

Legend: N features of all layers, M labelled ones.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from weft_attribution.core.feature_index.opened import OpenIndex
from weft_attribution.core.feature_ports import FeatureLabels, LabelRecord

__all__ = ["LabelColumns", "LabelTable"]

Array = npt.NDArray[Any]
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
        score_N = np.full(self._size, np.nan)
        score_N[self.number_M] = [_score(label, kind) for label in self.label_M]
        return score_N

    def find(self, words: str) -> Array:
        """Numbers of the features whose label has all words in it, rising."""
        wanted = sorted(words.lower().split(), key=len, reverse=True)
        rows = [row for row in self._rows_with(wanted[0]) if all(word in self._lowered[row] for word in wanted[1:])]
        return self.number_M[np.array(rows, np.int64)]

    @cached_property
    def _lowered(self) -> list[str]:
        return [" ".join(label.text.lower().split()) for label in self.label_M]

    @cached_property
    def _joined(self) -> tuple[str, Array]:
        """All of them in one text, so that a word is found without a loop over features; where each ends."""
        ends = np.cumsum([len(text) + 1 for text in self._lowered])
        return "\n".join(self._lowered), ends

    def _rows_with(self, word: str) -> list[int]:
        text, ends = self._joined
        rows, at = [], text.find(word)
        while at >= 0:
            row = int(np.searchsorted(ends, at, side="right"))
            rows.append(row)
            at = text.find(word, int(ends[row]))
        return rows


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
