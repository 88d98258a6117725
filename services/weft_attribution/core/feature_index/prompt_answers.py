"""
Answers to what fires on a text: features strongest first, cut into pages, the last few kept for the pages that follow.

A page is cut out of an answer that is kept here, or out of the same one made anew, on whatever replica. Two machines
may differ in the last digits of an activation, so a token tells which features were told before it, and a page goes on
only after just those: pages together tell no feature twice and leave none out.

Legend: N features, M activations of all of them.
"""

import base64
import binascii
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weft_attribution.core.ports import Token
from weft_common.errors import FailedPreconditionError, InvalidArgumentError

__all__ = ["KeptAnswers", "PageToken", "PromptFeature", "WholeAnswer", "strongest_first"]

Ints = npt.NDArray[np.int64]
_MOST_KEPT = 8
_VERSION = b"\x03"
_MARK_BYTES = 8
_PLACE_BYTES = 8


@dataclass(frozen=True)
class PromptFeature:
    """
    A feature on a text.

    Args:
        relative_max: Largest activation over the largest in the index; 0 where that is not known.
    """

    layer: int
    index: int
    positions: tuple[int, ...]
    activations: tuple[float, ...]
    relative_max: float


@dataclass(frozen=True, eq=False)
class WholeAnswer:
    """
    All that was found.

    Args:
        tokens: Of the text.
        layer_N: Layer of each feature, the strongest first.
        index_N: Index within its layer.
        relative_N: As `relative_max` of PromptFeature, float64.
        begin_N: Where its activations begin.
        end_N: Where they end.
        position_M: Where each activation is, int32.
        value_M: Activations, float32.
    """

    tokens: tuple[Token, ...]
    layer_N: Ints
    index_N: Ints
    relative_N: npt.NDArray[np.float64]
    begin_N: Ints
    end_N: Ints
    position_M: npt.NDArray[np.int32]
    value_M: npt.NDArray[np.float32]

    @property
    def num_active(self) -> int:
        """Features that are active anywhere."""
        return int((self.end_N > self.begin_N).sum())

    @property
    def num_bytes(self) -> int:
        """What its arrays take."""
        return sum(each.nbytes for each in vars(self).values() if isinstance(each, np.ndarray))

    def features(self, begin: int, end: int) -> tuple[PromptFeature, ...]:
        """Those from one place to another."""
        found = []
        for place in range(begin, min(end, len(self.layer_N))):
            part = slice(int(self.begin_N[place]), int(self.end_N[place]))
            found.append(
                PromptFeature(
                    int(self.layer_N[place]),
                    int(self.index_N[place]),
                    tuple(self.position_M[part].tolist()),
                    tuple(self.value_M[part].tolist()),
                    float(self.relative_N[place]),
                )
            )
        return tuple(found)

    def mark(self, key: Hashable, place: int) -> bytes:
        """Which features lie before a place, in whatever order, in the answer to `key`."""
        told_N = np.sort(self.layer_N[:place] << 32 | self.index_N[:place])
        return _digest(repr(key).encode() + told_N.astype("<i8").tobytes())


def strongest_first(
    tokens: tuple[Token, ...],
    layer_N: Ints,
    index_N: Ints,
    count_N: Ints,
    position_M: Ints,
    value_M: npt.NDArray[np.float32],
    largest_N: npt.NDArray[np.float64],
) -> WholeAnswer:
    """
    Put features in order: by activation over the largest that is known, then by activation, layer and index.

    Args:
        tokens: Of the text.
        layer_N: Layer of each.
        index_N: Index within its layer.
        count_N: Activations of each; those of the first come first.
        position_M: Where they are.
        value_M: What they are.
        largest_N: Largest activation otherwise; 0 where that is not known.
    """
    end_N = np.cumsum(count_N)
    begin_N = end_N - count_N
    fires_N = count_N > 0
    peak_N = np.zeros(len(count_N))
    if fires_N.any():
        peak_N[fires_N] = np.maximum.reduceat(value_M, begin_N[fires_N])
    relative_N = np.divide(peak_N, largest_N, out=np.zeros(len(peak_N)), where=largest_N > 0)
    order_N = np.lexsort((index_N, layer_N, -peak_N, -relative_N))
    return WholeAnswer(
        tokens,
        layer_N[order_N],
        index_N[order_N],
        relative_N[order_N],
        begin_N[order_N],
        end_N[order_N],
        position_M.astype(np.int32),
        value_M.astype(np.float32),
    )


@dataclass(frozen=True)
class PageToken:
    """
    Where a page begins.

    Args:
        place: Features that were told before it.
        told: Mark of the answer and of those features.
    """

    place: int
    told: bytes

    def write(self, question: Hashable) -> str:
        """As text that belongs to a question."""
        raw = _VERSION + _digest(repr(question).encode()) + self.told + self.place.to_bytes(_PLACE_BYTES, "big")
        return base64.urlsafe_b64encode(raw).decode()

    @classmethod
    def read(cls, text: str, question: Hashable) -> "PageToken":
        """
        Read what `write` gave.

        Raises:
            InvalidArgumentError: It is of another question, or none of ours.
        """
        try:
            raw = base64.b64decode(text.encode(), altchars=b"-_", validate=True)
        except (ValueError, binascii.Error):
            raw = b""
        head = _VERSION + _digest(repr(question).encode())
        if len(raw) != len(head) + _MARK_BYTES + _PLACE_BYTES or not raw.startswith(head):
            raise InvalidArgumentError(
                "page_token is not one that this call returned for this transcoder, prompt, layers, features and "
                "max_features; leave it empty to begin at the first page",
                field="page_token",
            )
        return cls(int.from_bytes(raw[-_PLACE_BYTES:], "big"), raw[len(head) : -_PLACE_BYTES])

    def check(self, answer: WholeAnswer, key: Hashable) -> None:
        """
        See that an answer begins with what was told before.

        Raises:
            FailedPreconditionError: It does not.
        """
        if self.told != answer.mark(key, self.place):
            raise FailedPreconditionError(
                "the answer is no longer the one that page_token goes on with: the transcoder or its index is another "
                "one now, or replicas compute the model differently; begin again at the first page"
            )


class KeptAnswers:
    """
    The last few answers, for the pages that follow.

    Args:
        memory_bytes: What they may take together; a larger one is not kept.
    """

    def __init__(self, memory_bytes: int) -> None:
        self._memory_bytes = memory_bytes
        self._kept: OrderedDict[Hashable, WholeAnswer] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> WholeAnswer | None:
        """The answer to a question, if it is kept."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: Hashable, answer: WholeAnswer) -> None:
        """Keep an answer, in the place of those that were not asked for longest."""
        if answer.num_bytes > self._memory_bytes:
            return
        with self._lock:
            self._kept[key] = answer
            self._kept.move_to_end(key)
            while len(self._kept) > _MOST_KEPT or self.num_bytes > self._memory_bytes:
                self._kept.popitem(last=False)

    @property
    def num_bytes(self) -> int:
        """What is kept."""
        return sum(each.num_bytes for each in self._kept.values())


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:_MARK_BYTES]
