"""
Labels of features: what a person or a model says that a feature stands for.

Nothing that was said is lost: a change is a new revision. Where a person has said something, that stands, whatever a
model says before or after.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, NamedTuple

from weft_common.errors import DataLossError, InvalidArgumentError

__all__ = [
    "MAX_TEXT",
    "Label",
    "Origin",
    "Place",
    "Score",
    "ScoreKind",
    "check_label",
    "is_plain",
    "latest",
    "same_words",
    "standing",
]

MAX_TEXT = 500
_MAX_SHORT = 100
_MAX_MODEL = 200
# They change the order in which what follows is shown.
_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class Place(NamedTuple):
    """One feature: its layer and its index within it, both from 0."""

    layer: int
    # In the place of tuple's method, which nobody needs here.
    index: int  # type: ignore[assignment]


class Origin(StrEnum):
    """Who says it."""

    HUMAN = "human"
    MODEL = "model"


class ScoreKind(StrEnum):
    """How a label was put to the test."""

    DETECTION = "detection"
    """Tell lines where the feature is active from lines where it is silent."""
    FUZZING = "fuzzing"
    """Tell marks on active tokens from marks drawn at random."""
    INTRUDER = "intruder"
    """Find the one line of several that is not the feature's; the label is not shown."""
    EMBEDDING = "embedding"
    """Rank lines by how near their embedding is to the label's."""


@dataclass(frozen=True)
class Score:
    """
    How well a label predicts where its feature is active, on examples that it was not made from.

    Args:
        value: Balanced accuracy, for intruder the share of right answers, for embedding the area under the ROC curve.
        low: Lower end of the 95 % interval.
        high: Upper end.
        n: Trials behind it.
        num_unanswered: Trials that were refused, failed or badly answered; they are not in `n`.
        scorer: Model that took the test.
        prompt: Prompt of the test.
        prompt_sha256: SHA-256 of that prompt's file.
        create_s: When, seconds since 1970.
    """

    value: float
    low: float
    high: float
    n: int
    num_unanswered: int
    scorer: str
    prompt: str
    prompt_sha256: str
    create_s: float = 0.0


@dataclass(frozen=True)
class Label:
    """
    One revision.

    Args:
        place: The feature.
        text: One line; empty withdraws what this origin said before.
        origin: Who says it.
        author: Name of a person.
        explainer: Model that made it.
        prompt: Prompt that it was made with.
        prompt_sha256: SHA-256 of that prompt's file.
        revision: Number among all of the feature, from 1; 0 before it is kept.
        create_s: When it was said, seconds since 1970.
        scores: Its scores by kind.
    """

    place: Place
    text: str
    origin: Origin = Origin.HUMAN
    author: str = ""
    explainer: str = ""
    prompt: str = ""
    prompt_sha256: str = ""
    revision: int = 0
    create_s: float = 0.0
    scores: Mapping[ScoreKind, Score] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As it is stored below its feature; what is empty is left out."""
        document: dict[str, Any] = {
            "revision": self.revision,
            "origin": self.origin.value,
            "text": self.text,
            "create_s": self.create_s,
        }
        for name in ("author", "explainer", "prompt", "prompt_sha256"):
            if value := getattr(self, name):
                document[name] = value
        if self.scores:
            document["scores"] = {kind.value: asdict(score) for kind, score in self.scores.items()}
        return document

    @classmethod
    def from_json(cls, place: Place, document: Any) -> "Label":
        """
        Read what `to_json` wrote; fields of a later version are passed over.

        Raises:
            DataLossError: It is no label.
        """
        try:
            return cls(
                place,
                str(document["text"]),
                Origin(document["origin"]),
                **{name: str(document.get(name, "")) for name in ("author", "explainer", "prompt", "prompt_sha256")},
                revision=int(document["revision"]),
                create_s=float(document["create_s"]),
                scores={ScoreKind(kind): _score(each) for kind, each in document.get("scores", {}).items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataLossError(
                f"a stored label of feature {place.layer}-{place.index} cannot be read ({error!r}); "
                "restore its object from a backup"
            ) from None


def _score(document: Mapping[str, Any]) -> Score:
    return Score(
        value=float(document["value"]),
        low=float(document["low"]),
        high=float(document["high"]),
        n=int(document["n"]),
        num_unanswered=int(document["num_unanswered"]),
        scorer=str(document["scorer"]),
        prompt=str(document["prompt"]),
        prompt_sha256=str(document["prompt_sha256"]),
        create_s=float(document["create_s"]),
    )


def check_label(label: Label, field: str = "label") -> Label:
    """
    Return a label that may be kept, without blanks around its text.

    Raises:
        InvalidArgumentError: The text is empty, too long or more than one line, or another field is too long.
    """
    text = label.text.strip()
    if not 1 <= len(text) <= MAX_TEXT:
        raise InvalidArgumentError(
            f"{field}.text has {len(text)} characters; a label has 1 to {MAX_TEXT}", field=f"{field}.text"
        )
    for name, value, most in (
        ("text", text, MAX_TEXT),
        ("author", label.author, _MAX_SHORT),
        ("explainer", label.explainer, _MAX_MODEL),
        ("prompt", label.prompt, _MAX_SHORT),
        ("prompt_sha256", label.prompt_sha256, _MAX_SHORT),
    ):
        wrong = next((character for character in value if not is_plain(character)), None)
        if wrong is not None:
            raise InvalidArgumentError(
                f"{field}.{name} holds the character U+{ord(wrong):04X}; it is one line of text without control "
                "characters",
                field=f"{field}.{name}",
            )
        if len(value) > most:
            raise InvalidArgumentError(
                f"{field}.{name} has {len(value)} characters; it has {most} at most", field=f"{field}.{name}"
            )
    return replace(label, text=text)


def is_plain(character: str) -> bool:
    r"""
    Whether a character may stand in a line of text.

    >>> [is_plain(character) for character in "a<\n\u202e"]
    [True, True, False, False]
    """
    return unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp") and character not in _TURNING


def latest(revisions: Sequence[Label], origin: Origin) -> Label | None:
    """What an origin says now: its last revision, unless that withdrew the one before."""
    said = [each for each in revisions if each.origin is origin]
    return said[-1] if said and said[-1].text else None


def standing(revisions: Sequence[Label]) -> Label | None:
    """What stands among a feature's revisions, oldest first: a person's word, else a model's."""
    return latest(revisions, Origin.HUMAN) or latest(revisions, Origin.MODEL)


def same_words(one: Label, other: Label) -> bool:
    """Whether two labels say the same in the same way, whenever that was."""
    return _words(one) == _words(other)


def _words(label: Label) -> Label:
    return replace(label, revision=0, create_s=0.0, scores={})
