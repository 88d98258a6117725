"""What interpretation needs from the outside: a language model that answers, and the text of tokens."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from weft_common.errors import FailedPreconditionError, UnavailableError

__all__ = [
    "Answer",
    "Embedding",
    "Interpreter",
    "NobodyAnsweredError",
    "NotServedError",
    "Observer",
    "Outcome",
    "Question",
    "Texts",
]


class NobodyAnsweredError(UnavailableError):
    """
    The endpoint did not answer, however often it was asked.

    Args:
        message: What came instead.
        attempts: How often the question was sent; None where that is not known, and as often as allowed must be feared.
        retry_after_s: Seconds that the endpoint asked for before the next one.
    """

    def __init__(self, message: str, *, attempts: int | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.attempts = attempts


class NotServedError(FailedPreconditionError):
    """
    The endpoint answers nothing, for want of a key, a right or the model.

    Args:
        message: What to set.
        attempts: How often the question was sent.
    """

    def __init__(self, message: str, *, attempts: int = 1) -> None:
        super().__init__(message)
        self.attempts = attempts


class Outcome(StrEnum):
    """What became of a question that reached the endpoint."""

    ANSWERED = "answered"
    REFUSED = "refused"
    """The model or its filter would not answer."""
    REJECTED = "rejected"
    """The endpoint takes the question for wrong, for example for too long; nothing was paid for."""
    STRANGE = "strange"
    """What came back is not of the protocol, such as a page of a proxy; it is not kept, so that it is asked again."""


@dataclass(frozen=True)
class Question:
    """
    All that an answer depends on.

    Args:
        model: Model of the endpoint.
        system: What it is told to do.
        user: The data.
        max_answer_tokens: Longest answer.
        schema: JSON schema that the endpoint holds the answer to, as text; empty for none.
        is_greedy: At temperature 0; otherwise as the endpoint samples by itself.
    """

    model: str
    system: str
    user: str
    max_answer_tokens: int
    schema: str = ""
    is_greedy: bool = True

    def key(self) -> str:
        """SHA-256 over everything in it."""
        sampling = 0 if self.is_greedy else None
        return _digest(["chat-1", self.model, self.system, self.user, self.max_answer_tokens, self.schema, sampling])

    @property
    def most_tokens(self) -> int:
        """No fewer than question and answer have: a token has a byte at least, a message some tokens of its own."""
        return len((self.system + self.user + self.schema).encode()) + 64 + self.max_answer_tokens


@dataclass(frozen=True)
class Answer:
    """
    What came back, kept whatever it is.

    Args:
        outcome: What became of the question.
        text: The answer, or what was said instead.
        question_tokens: Tokens of the question, as the endpoint counts them; -1 where it does not say.
        answer_tokens: The same of the answer.
        attempts: How often it was sent.
    """

    outcome: Outcome
    text: str
    question_tokens: int = -1
    answer_tokens: int = -1
    attempts: int = 1

    def to_json(self) -> dict[str, Any]:
        """As it is stored."""
        return {
            "outcome": self.outcome.value,
            "text": self.text,
            "question_tokens": self.question_tokens,
            "answer_tokens": self.answer_tokens,
            "attempts": self.attempts,
        }


@dataclass(frozen=True)
class Embedding:
    """Texts as vectors: what is asked for, all at once."""

    model: str
    texts: tuple[str, ...]

    def key(self) -> str:
        """SHA-256 over everything in it."""
        return _digest(["embedding-1", self.model, *self.texts])

    @property
    def most_tokens(self) -> int:
        """No fewer than the texts have."""
        return sum(len(text.encode()) + 8 for text in self.texts)


class Interpreter(Protocol):
    """
    A language model behind an endpoint.

    Raises (both calls): NobodyAnsweredError where it did not answer, however often it was asked;
    NotServedError where it will not answer anything, for want of a key, a right or the model.
    """

    async def ask(self, question: Question, *, key: str, max_attempts: int) -> Answer:
        """
        Put a question.

        Args:
            question: The question.
            key: The same for the same question; the endpoint may know it again by this.
            max_attempts: How often it may be sent.
        """

    async def embed(self, embedding: Embedding, *, key: str, max_attempts: int) -> Answer:
        """The same; the answer's text is a JSON list of vectors, lists of numbers, in the order of the texts."""


class Observer(Protocol):
    """Counts what is spent, for metrics."""

    def call(self, result: str, question_tokens: int, answer_tokens: int) -> None:
        """One question: an outcome, `failed`, or `reused` where an answer was there already."""

    def broken(self) -> None:
        """One answer that was not what was asked for."""


class Texts(Protocol):
    """Text of tokens in UTF-8; one may have a part of a character alone."""

    async def __call__(self, token_ids: Sequence[int]) -> tuple[bytes, ...]:
        """The bytes of each token."""


def _digest(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()
