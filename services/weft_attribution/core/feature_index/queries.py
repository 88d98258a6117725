"""
Which features are wanted, in which order, page after page, out of columns in memory.

Legend: N features of all layers.
"""

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from weft_attribution.core.feature_index.labelled import LabelColumns, LabelTable
from weft_attribution.core.feature_index.open_indexes import OpenIndexes
from weft_attribution.core.feature_index.opened import OpenIndex
from weft_common.errors import InvalidArgumentError

__all__ = ["MAX_PAGE", "Bounds", "FeatureFilter", "FeatureQueries", "FoundFeatures", "Question"]

Array = npt.NDArray[Any]
_DEFAULT_PAGE = 50
MAX_PAGE = 1000
MAX_QUERY = 500
_ORDERS = {
    "layer": "",
    "density": "density",
    "max_activation": "largest",
    "mean_activation": "mean",
    "decoder_norm": "norm",
    "last_layer": "last_layer",
    "score": "score",
}


@dataclass(frozen=True)
class Bounds:
    """Both included; None bounds nothing."""

    least: float | None = None
    most: float | None = None

    def of(self, values: Array) -> Array | None:
        """Which values lie within; None where all do."""
        if self.least is None and self.most is None:
            return None
        low = -np.inf if self.least is None else self.least
        high = np.inf if self.most is None else self.most
        return np.asarray((values >= low) & (values <= high))


@dataclass(frozen=True)
class FeatureFilter:
    """Which features: those that all of this is true of. States are 0 dead, 1 active, 2 dense."""

    layers: tuple[int, ...] = ()
    states: tuple[int, ...] = ()
    density: Bounds = Bounds()
    max_activation: Bounds = Bounds()
    decoder_norm: Bounds = Bounds()
    label_state: str = ""
    score_kind: str = ""
    score: Bounds = Bounds()


@dataclass(frozen=True)
class Question:
    """What is asked of one transcoder's features."""

    transcoder: str
    filter: FeatureFilter = field(default_factory=FeatureFilter)
    order_by: str = ""
    page_size: int = 0
    page_token: str = ""
    skip: int = 0


@dataclass(frozen=True)
class FoundFeatures:
    """
    A page.

    Args:
        index: Whose.
        labels: Its labels.
        numbers: Of the features, in order.
        counts: With a token: on how many of its strongest stretches each is strongest there; empty otherwise.
        total: Features on all pages.
        next_token: Of the next page.
    """

    index: OpenIndex
    labels: LabelColumns
    numbers: Array
    counts: Array
    total: int
    next_token: str


class FeatureQueries:
    """
    Answers questions.

    Args:
        indexes: Whole indexes.
        labels: Labels beside them.
    """

    def __init__(self, indexes: OpenIndexes, labels: LabelTable) -> None:
        self.indexes, self.labels = indexes, labels

    def list(self, question: Question) -> FoundFeatures:
        """
        Features by their figures.

        Raises:
            NotFoundError: No such transcoder.
            FailedPreconditionError: It has no index.
            InvalidArgumentError: The question cannot be understood.
        """
        index = self.indexes.open(question.transcoder)
        labels = self.labels.columns(index)
        mask_N = _mask(index, labels, question.filter)
        order_N = _order(index, labels, question)
        if mask_N is None:
            wanted = np.arange(len(index.layer_N), dtype=np.int32) if order_N is None else order_N
        else:
            wanted = np.flatnonzero(mask_N) if order_N is None else order_N[mask_N[order_N]]
        return _page(index, labels, question, "", wanted, None)

    def by_label(self, question: Question, words: str) -> FoundFeatures:
        """Features whose label has all words in it."""
        if not words.split() or len(words) > MAX_QUERY:
            raise InvalidArgumentError(
                f"label has {len(words)} characters; give a word or more, {MAX_QUERY} characters at most", field="label"
            )
        index = self.indexes.open(question.transcoder)
        labels = self.labels.columns(index)
        wanted = _kept(index, labels, question, labels.find(words))
        return _page(index, labels, question, f"label {words}", wanted, None)

    def by_token(self, question: Question, token_ids: Sequence[int]) -> FoundFeatures:
        """Features that are strongest on one of some tokens, the most of their stretches first."""
        index = self.indexes.open(question.transcoder)
        labels = self.labels.columns(index)
        token, number, count = index.triggers
        found, counts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for token_id in sorted(set(token_ids)):
            part = slice(*np.searchsorted(token, [token_id, token_id + 1]).tolist())
            found.append(number[part].astype(np.int64))
            counts.append(count[part].astype(np.int64))
        numbers, which = np.unique(np.concatenate(found), return_inverse=True)
        sums = np.bincount(which, weights=np.concatenate(counts), minlength=len(numbers)).astype(np.int64)
        of_each = dict(zip(numbers.tolist(), sums.tolist(), strict=True))
        if not question.order_by:
            numbers = numbers[np.lexsort((numbers, -sums))]
        wanted = _kept(index, labels, question, numbers)
        return _page(index, labels, question, f"token {sorted(set(token_ids))}", wanted, of_each)


def _kept(index: OpenIndex, labels: LabelColumns, question: Question, numbers: Array) -> Array:
    """Those that the filter takes, in the order asked for."""
    mask_N = _mask(index, labels, question.filter)
    if mask_N is not None:
        numbers = numbers[mask_N[numbers]]
    if question.order_by:
        order_N = _order(index, labels, question)
        if order_N is None:
            return np.sort(numbers)
        wanted_N = np.zeros(len(index.layer_N), bool)
        wanted_N[numbers] = True
        return np.asarray(order_N[wanted_N[order_N]])
    return numbers


def _mask(index: OpenIndex, labels: LabelColumns, wanted: FeatureFilter) -> Array | None:
    """Which features the filter takes; None where it takes all."""
    columns = index.columns
    masks = [
        wanted.density.of(columns["density"]),
        wanted.max_activation.of(columns["largest"]),
        wanted.decoder_norm.of(columns["norm"]),
        np.isin(index.layer_N, wanted.layers) if wanted.layers else None,
        np.isin(index.state_of_each, wanted.states) if wanted.states else None,
        _label_mask(labels, wanted.label_state),
    ]
    if wanted.score != Bounds():
        if not wanted.score_kind:
            raise InvalidArgumentError(
                "filter.score bounds a score, and filter.score_kind is empty; say which, for example detection",
                field="filter.score_kind",
            )
        with np.errstate(invalid="ignore"):
            masks.append(wanted.score.of(labels.score(wanted.score_kind)))
    found: Array | None = None
    for mask in masks:
        if mask is not None:
            found = mask if found is None else found & mask
    return found


def _label_mask(labels: LabelColumns, state: str) -> Array | None:
    kind_N = labels.kind_of_each
    masks: dict[str, Array | None] = {
        "": None,
        "labelled": kind_N > 0,
        "unlabelled": kind_N == 0,
        "human": kind_N == 2,
        "model": kind_N == 1,
    }
    return masks[state]


def _order(index: OpenIndex, labels: LabelColumns, question: Question) -> Array | None:
    """All features in order; None for the order of layer and index."""
    name, _, direction = (question.order_by or "layer").strip().partition(" ")
    if name not in _ORDERS or direction not in ("", "asc", "desc"):
        raise InvalidArgumentError(
            f"order_by is {question.order_by[:100]!r}; give one of {', '.join(_ORDERS)}, with ' desc' to have it fall",
            field="order_by",
        )
    falling = direction == "desc"
    if name == "layer":
        return _by_layer(index) if falling else None
    if name == "score":
        if not question.filter.score_kind:
            raise InvalidArgumentError(
                "order_by is score, and filter.score_kind is empty; say which, for example detection",
                field="filter.score_kind",
            )
        return labels.order(question.filter.score_kind, falling=falling)
    return index.order(_ORDERS[name], falling=falling)


def _by_layer(index: OpenIndex) -> Array:
    return np.asarray(np.argsort(-index.layer_N, kind="stable"))


def _page(
    index: OpenIndex,
    labels: LabelColumns,
    question: Question,
    query: str,
    wanted: Array,
    counts: dict[int, int] | None,
) -> FoundFeatures:
    if question.page_size < 0:
        raise InvalidArgumentError(
            f"page_size is {question.page_size}; give 0 for {_DEFAULT_PAGE}, or up to {MAX_PAGE}", field="page_size"
        )
    if question.skip < 0:
        raise InvalidArgumentError(f"skip is {question.skip}; give 0 or how many to pass over", field="skip")
    size = min(question.page_size or _DEFAULT_PAGE, MAX_PAGE)
    asked = f"{index.transcoder}/{index.index_id} {question.filter} {question.order_by} {query}"
    mark = hashlib.sha256(asked.encode()).digest()[:8]
    place = _place(question.page_token, mark) + question.skip
    numbers = wanted[place : place + size]
    more = place + size < len(wanted)
    return FoundFeatures(
        index,
        labels,
        numbers,
        np.array([counts[number] for number in numbers.tolist()]) if counts is not None else np.zeros(0, np.int64),
        len(wanted),
        page_token(mark, place + size) if more else "",
    )


def page_token(mark: bytes, place: int) -> str:
    """A token of the next page: what was asked, and how far it went."""
    return base64.urlsafe_b64encode(b"\x02" + mark + place.to_bytes(8, "big")).decode()


def _place(token: str, mark: bytes) -> int:
    """
    Where a page begins.

    Raises:
        InvalidArgumentError: The token is of another question, or none of ours.
    """
    if not token:
        return 0
    try:
        raw = base64.b64decode(token.encode(), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        raw = b""
    if len(raw) != 17 or raw[:9] != b"\x02" + mark:
        raise InvalidArgumentError(
            "page_token is not one that this call returned for this question and this index; leave it empty to begin "
            "at the first page",
            field="page_token",
        )
    return int.from_bytes(raw[9:], "big")
