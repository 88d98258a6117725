"""
What came of each feature, in the bucket: `features/{transcoder}/interpretations/{operation}/{n}.json`.

An object has so many features by their place in the order of the work. Work that is taken up again goes over all of
them once more and writes the same places again, so that a feature stands there once, whatever has crashed.
"""

import threading
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from weft_attribution.core.interpretation.estimates import Estimate
from weft_attribution.core.labels import Place, ScoreKind, is_plain
from weft_common.errors import DataLossError, NotFoundError
from weft_store.documents import encode_json, read_json
from weft_store.port import ObjectStore

__all__ = ["Ending", "FeatureResult", "Rating", "Results", "plain", "read_results", "work_folder"]

_A_PART = 500
_MAX_REASON = 300


class Ending(StrEnum):
    """What came of a feature."""

    LABELLED = "labelled"
    KEPT = "kept"
    SCORED = "scored"
    TOO_FEW = "too_few"
    UNLABELLED = "unlabelled"
    REFUSED = "refused"
    REJECTED = "rejected"
    BROKEN = "broken"
    UNANSWERED = "unanswered"
    CHANGED = "changed"


@dataclass(frozen=True)
class Rating:
    """
    A score of one feature's label.

    Args:
        kind: The test.
        value: 0 to 1.
        low: Lower end of its 95 % interval.
        high: Upper end.
        n: Trials behind it.
        unanswered: Trials that nobody decided.
        is_control: Whether the label was another feature's.
    """

    kind: ScoreKind
    value: float
    low: float
    high: float
    n: int
    unanswered: int
    is_control: bool = False

    @classmethod
    def of(cls, kind: ScoreKind, estimate: Estimate, unanswered: int, *, is_control: bool = False) -> "Rating":
        """From an estimate."""
        return cls(kind, estimate.value, estimate.low, estimate.high, estimate.n, unanswered, is_control)


@dataclass(frozen=True)
class FeatureResult:
    """
    What came of one feature.

    Args:
        place: The feature.
        ending: What came of it.
        label: The label that was made, kept or scored.
        reason: Why it came to nothing, in the words of who answered.
        tests: Its scores.
    """

    place: Place
    ending: Ending
    label: str = ""
    reason: str = ""
    tests: tuple[Rating, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As it is stored; what is empty is left out."""
        document: dict[str, Any] = {"place": list(self.place), "ending": self.ending.value}
        for name in ("label", "reason"):
            if value := getattr(self, name):
                document[name] = value
        if self.tests:
            document["tests"] = [{**asdict(test), "kind": test.kind.value} for test in self.tests]
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "FeatureResult":
        """Read what `to_json` wrote. KeyError, TypeError or ValueError where it is something else."""
        layer, index = document["place"]
        return cls(
            Place(int(layer), int(index)),
            Ending(document["ending"]),
            str(document.get("label", "")),
            str(document.get("reason", "")),
            tuple(Rating(**{**test, "kind": ScoreKind(test["kind"])}) for test in document.get("tests", ())),
        )


class Results:
    """
    Keeps what came of the features of one operation.

    Args:
        store: The bucket.
        transcoder: Id of the transcoder.
        operation_id: Id of the operation.
    """

    def __init__(self, store: ObjectStore, transcoder: str, operation_id: str) -> None:
        self._store, self._folder = store, work_folder(transcoder, operation_id)
        # `write` runs in threads, of which a cancelled one goes on beside the next.
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._parts: dict[int, dict[int, FeatureResult]] = {}
        self._changed: set[int] = set()
        self._taken_in: set[int] = set()

    def note(self, position: int, result: FeatureResult) -> None:
        """Take down what came of the feature at a place; `write` stores it."""
        with self._lock:
            self._parts.setdefault(position // _A_PART, {})[position] = result
            self._changed.add(position // _A_PART)

    def write(self) -> None:
        """Store what has changed; blocks. What cannot be stored now is stored by the next call."""
        with self._writing:
            with self._lock:
                changed = sorted(self._changed)
            for part in changed:
                self._write_part(part)

    def _write_part(self, part: int) -> None:
        # Of a process before this one, which may have been further.
        there = {} if part in self._taken_in else _read_part(self._store, self._folder, part)
        with self._lock:
            self._taken_in.add(part)
            self._changed.discard(part)
            found = self._parts[part] = {**there, **self._parts[part]}
            document = {"features": {str(at): found[at].to_json() for at in sorted(found)}}
        try:
            self._store.put(f"{self._folder}{part}.json", encode_json(document))
        except BaseException:
            with self._lock:
                self._changed.add(part)
            raise
        with self._lock:
            if len(found) == _A_PART and part not in self._changed:
                # It is whole, and need not be held.
                self._parts[part] = {}
                self._taken_in.discard(part)


def read_results(
    store: ObjectStore,
    transcoder: str,
    operation_id: str,
    *,
    first: int = 0,
    endings: Collection[Ending] = (),
) -> Iterator[tuple[int, FeatureResult]]:
    """
    Walk over what came of features, by place; blocks.

    Args:
        store: The bucket.
        transcoder: Id of the transcoder.
        operation_id: Id of the operation.
        first: Place to begin at.
        endings: Only these; none means all.

    Raises:
        DataLossError: An object is damaged.
    """
    folder = work_folder(transcoder, operation_id)
    numbers = (info.key.removeprefix(folder).removesuffix(".json") for info in store.list(folder))
    for part in sorted(int(number) for number in numbers if number.isdecimal()):
        if (part + 1) * _A_PART <= first:
            continue
        for at, result in sorted(_read_part(store, folder, part).items()):
            if at >= first and (not endings or result.ending in endings):
                yield at, result


def plain(text: str) -> str:
    r"""
    What somebody said as one line of plain text, cut where it is long.

    >>> plain("no,\n I \u202e will not")
    'no, I will not'
    """
    line = " ".join("".join(each if is_plain(each) else " " for each in text[: 4 * _MAX_REASON]).split())
    return line if len(line) <= _MAX_REASON else f"{line[: _MAX_REASON - 1]}…"


def work_folder(transcoder: str, operation_id: str) -> str:
    """All that is kept of one operation lies below this."""
    return f"features/{transcoder}/interpretations/{operation_id}/"


def _read_part(store: ObjectStore, folder: str, part: int) -> dict[int, FeatureResult]:
    key = f"{folder}{part}.json"
    try:
        document, _ = read_json(store, key)
    except NotFoundError:
        return {}
    try:
        return {int(at): FeatureResult.from_json(each) for at, each in document["features"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataLossError(f"object {key!r} is no list of results ({error!r}); delete it") from None
