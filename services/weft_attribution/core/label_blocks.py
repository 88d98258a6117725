"""
The labels that stand of a transcoder, as columns: about a hundred bytes a label, and little to do when a few change.

Legend: M labels of a block.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from weft_attribution.core.feature_index.tables import TextColumn
from weft_attribution.core.feature_ports import LabelRecord

__all__ = ["FEATURES_A_BLOCK", "FeatureLabels", "LabelBlock", "LabelBlocks", "StandingLabel", "StandingScore"]

Array = npt.NDArray[Any]
FEATURES_A_BLOCK = 4096
"""So many features of a layer are made anew when one of them is labelled: some ten milliseconds."""
_KINDS = {"model": 1, "human": 2}
_ORIGINS = {number: origin for origin, number in _KINDS.items()}


class StandingScore(NamedTuple):
    """A score from 0 to 1, and the trials behind it."""

    value: float
    n: int


class StandingLabel(NamedTuple):
    """A label as questions need it, see `LabelRecord`."""

    text: str
    origin: str
    explainer: str
    prompt_sha256: str
    scores: Mapping[str, StandingScore]


class LabelBlock:
    """
    Labels of neighbouring features of a layer.

    Args:
        labels: By index within the layer, at least one.

    Attributes:
        index_M: The features, rising.
        kind_M: 1 where a model said it, 2 where a person did.
        score_M: By kind of score, NaN where there is none.
    """

    def __init__(self, labels: Mapping[int, LabelRecord]) -> None:
        each_M = [labels[index] for index in sorted(labels)]
        self.index_M: Array = np.array(sorted(labels), np.int32)
        self.kind_M: Array = np.array([_KINDS[str(each.origin)] for each in each_M], np.int8)
        self._texts: Any = pa.array([each.text for each in each_M], pa.large_string())
        kinds = sorted({str(kind) for each in each_M for kind in each.scores})
        self.score_M: dict[str, Array] = {kind: np.full(len(each_M), np.nan) for kind in kinds}
        self._trials_M: dict[str, Array] = {kind: np.zeros(len(each_M), np.int32) for kind in kinds}
        for place, each in enumerate(each_M):
            for kind, score in each.scores.items():
                self.score_M[str(kind)][place] = score.value
                self._trials_M[str(kind)][place] = score.n
        # Thousands of labels come out of a few models and prompts.
        makers = [(each.explainer, each.prompt_sha256) for each in each_M]
        numbers = {maker: number for number, maker in enumerate(dict.fromkeys(makers))}
        self._makers, self._maker_M = list(numbers), np.array([numbers[maker] for maker in makers], np.int32)

    @cached_property
    def num_bytes(self) -> int:
        """What it takes, with what a search adds."""
        arrays = [self.index_M, self.kind_M, self._maker_M, *self.score_M.values(), *self._trials_M.values()]
        return sum(array.nbytes for array in arrays) + 2 * int(self._texts.nbytes) + 256 * len(self._makers) + 2048

    def label(self, index: int) -> StandingLabel | None:
        """The label of a feature, if it has one."""
        place = int(np.searchsorted(self.index_M, index))
        return self._at(place) if place < len(self.index_M) and self.index_M[place] == index else None

    def labels(self) -> dict[int, StandingLabel]:
        """All of them by index."""
        return {index: self._at(place) for place, index in enumerate(self.index_M.tolist())}

    def _at(self, place: int) -> StandingLabel:
        scores = {
            kind: StandingScore(float(value_M[place]), int(self._trials_M[kind][place]))
            for kind, value_M in self.score_M.items()
            if not np.isnan(value_M[place])
        }
        origin = _ORIGINS[int(self.kind_M[place])]
        explainer, prompt_sha256 = self._makers[self._maker_M[place]]
        return StandingLabel(self._texts[place].as_py(), origin, explainer, prompt_sha256, scores)

    def find(self, words: Sequence[str]) -> Array:
        """Features whose label has all of some words in small letters in it, rising."""
        return np.asarray(self.index_M[self._lower.with_all(words)])

    @cached_property
    def _lower(self) -> TextColumn:
        return TextColumn([text.lower() for text in self._texts.to_pylist()])


class LabelBlocks(Mapping[tuple[int, int], StandingLabel]):
    """
    All labels of a transcoder at one moment, by layer and index.

    Args:
        blocks: By layer and number of the block within it.
        damaged: Keys of pages that could not be read and are passed over.
    """

    def __init__(self, blocks: Mapping[tuple[int, int], LabelBlock], damaged: Sequence[str] = ()) -> None:
        # Their order is that of features.
        self.blocks = {key: blocks[key] for key in sorted(blocks)}
        self.damaged = tuple(damaged)

    @classmethod
    def of(cls, labels: Mapping[tuple[int, int], LabelRecord]) -> "LabelBlocks":
        """Labels that are all there already."""
        groups = groupby(sorted(labels), key=lambda place: (place[0], place[1] // FEATURES_A_BLOCK))
        return cls({key: LabelBlock({place[1]: labels[place] for place in places}) for key, places in groups})

    @property
    def num_bytes(self) -> int:
        """What they take together."""
        return sum(block.num_bytes for block in self.blocks.values())

    def __getitem__(self, place: tuple[int, int]) -> StandingLabel:
        block = self.blocks.get((place[0], place[1] // FEATURES_A_BLOCK))
        found = None if block is None else block.label(place[1])
        if found is None:
            raise KeyError(place)
        return found

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for (layer, _), block in self.blocks.items():
            yield from ((layer, index) for index in block.index_M.tolist())

    def __len__(self) -> int:
        return sum(len(block.index_M) for block in self.blocks.values())


class FeatureLabels(Protocol):
    """Labels of features, one a feature: the one that counts."""

    async def ready(self, transcoder: str) -> None:
        """Wait until `labels_of` need not wait."""

    def labels_of(self, transcoder: str) -> LabelBlocks:
        """
        All labels of a transcoder.

        The same object comes back for as long as nothing has changed, and blocks that have not changed are the same
        objects after, so that what was derived from them can be kept.
        """
