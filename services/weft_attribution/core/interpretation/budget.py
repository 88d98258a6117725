"""
What interpretation may spend, and what it has spent.

A call is counted each time it is sent, tokens as the endpoint counts them. Before a call the most that it can come to
is put aside, so that the limits hold however many calls are under way.
"""

import asyncio
from dataclasses import dataclass, replace

from weft_attribution.core.interpretation.ports import Answer, Outcome
from weft_common.errors import InvalidArgumentError

__all__ = ["Budget", "BudgetSpentError", "Reservation", "Spend"]


_PAID = frozenset({"calls", "question_tokens", "answer_tokens"})


class BudgetSpentError(Exception):
    """The next call might go beyond the limits."""


@dataclass
class Spend:
    """
    What was spent, and what came of it.

    Args:
        calls: Requests that were sent, repeated ones too.
        question_tokens: Tokens of questions that were paid for.
        answer_tokens: Tokens of their answers.
        answered: Questions that were answered, well or badly.
        refused: Questions that the model or its filter would not answer.
        rejected: Questions that the endpoint took for wrong.
        broken: Answers that were not what was asked for.
        failed: Questions that were not answered, however often they were sent.
        reused: Questions whose answer was there already, paid for by other work.
    """

    calls: int = 0
    question_tokens: int = 0
    answer_tokens: int = 0
    answered: int = 0
    refused: int = 0
    rejected: int = 0
    broken: int = 0
    failed: int = 0
    reused: int = 0

    def count(self, answer: Answer, most_tokens: int) -> None:
        """Count a question that was paid for; what the endpoint does not tell is taken for the most it can be."""
        self.calls += answer.attempts
        self.question_tokens += answer.question_tokens if answer.question_tokens >= 0 else most_tokens
        self.answer_tokens += max(0, answer.answer_tokens)
        self.answered += answer.outcome in (Outcome.ANSWERED, Outcome.STRANGE)
        self.refused += answer.outcome is Outcome.REFUSED
        self.rejected += answer.outcome is Outcome.REJECTED

    @property
    def tokens(self) -> int:
        """Tokens of questions and answers."""
        return self.question_tokens + self.answer_tokens


@dataclass(frozen=True)
class Reservation:
    """What one call may come to."""

    attempts: int
    tokens: int


class Budget:
    """
    Limits, and the spending below them.

    Args:
        max_calls: Most calls; 0 for no limit.
        max_tokens: Most tokens; 0 for no limit.

    Raises:
        InvalidArgumentError: A limit is negative.
    """

    def __init__(self, max_calls: int = 0, max_tokens: int = 0) -> None:
        for name, value in (("max_calls", max_calls), ("max_tokens", max_tokens)):
            if value < 0:
                raise InvalidArgumentError(f"{name} is {value}; give a number above 0, or 0 for no limit", field=name)
        self.max_calls, self.max_tokens = max_calls, max_tokens
        self.spend = Spend()
        self._told = Spend()
        self._calls_aside = 0
        self._tokens_aside = 0
        self._settled = asyncio.Event()

    def recall(self, told: Spend) -> None:
        """Begin with what was told before a process died; what is found of it again counts no second time."""
        self.spend, self._told = replace(told), replace(told)

    def found(self, answer: Answer, most_tokens: int) -> None:
        """Count an answer that this work had paid for before."""
        spent = Spend()
        spent.count(answer, most_tokens)
        self._add(spent, is_new=False)

    def note(self, spend: Spend) -> None:
        """Count what costs nothing, such as a broken answer."""
        self._add(spend, is_new=False)

    def _add(self, spend: Spend, *, is_new: bool) -> None:
        for name in Spend.__dataclass_fields__:
            value = getattr(spend, name)
            # A question that is asked again is one question, but another call.
            known = 0 if is_new and name in _PAID else min(value, getattr(self._told, name))
            setattr(self._told, name, getattr(self._told, name) - known)
            setattr(self.spend, name, getattr(self.spend, name) + value - known)

    async def reserve(self, max_attempts: int, tokens_a_call: int) -> Reservation:
        """
        Put aside what a question may come to; with fewer attempts where fewer calls are left.

        What others have put aside may come back, so they are waited for.

        Raises:
            BudgetSpentError: There is not enough left.
        """
        while True:
            attempts = max_attempts
            if self.max_calls:
                attempts = min(attempts, self.max_calls - self.spend.calls - self._calls_aside)
            tokens = self.spend.tokens + self._tokens_aside + tokens_a_call
            if attempts >= 1 and (not self.max_tokens or tokens <= self.max_tokens):
                break
            if not self._calls_aside:
                raise BudgetSpentError
            await self._settled.wait()
        self._calls_aside += attempts
        self._tokens_aside += tokens_a_call
        return Reservation(attempts, tokens_a_call)

    def settle(
        self, reservation: Reservation, answer: Answer | None, attempts: int | None = None, *, is_failed: bool = True
    ) -> None:
        """
        Count what a call came to; without an answer no token.

        Args:
            reservation: What was put aside.
            answer: The answer, if one came.
            attempts: How often it was sent, without an answer; None counts all that were put aside.
            is_failed: Whether a question without an answer is not asked again.
        """
        self._calls_aside -= reservation.attempts
        self._tokens_aside -= reservation.tokens
        spent = Spend()
        if answer is None:
            spent.calls = reservation.attempts if attempts is None else min(attempts, reservation.attempts)
            spent.failed = int(is_failed)
        else:
            spent.count(answer, reservation.tokens)
        self._add(spent, is_new=True)
        settled, self._settled = self._settled, asyncio.Event()
        settled.set()
