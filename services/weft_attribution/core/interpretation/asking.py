"""
Questions to a language model: looked up first, within the budget, a few at a time, and every answer kept.

An answer on its way when the work is stopped is waited for and kept, since it is paid for. Where the endpoint says for
how long it wants no question, none is sent for so long, an hour at most; that is no failure.
"""

import asyncio
from collections.abc import Awaitable, Callable
from weakref import WeakValueDictionary

from weft_attribution.core.interpretation.budget import Budget, Spend
from weft_attribution.core.interpretation.journal import Entry, Journal
from weft_attribution.core.interpretation.ports import (
    Answer,
    Embedding,
    Interpreter,
    NobodyAnsweredError,
    NotServedError,
    Observer,
    Outcome,
    Question,
)
from weft_common.errors import UnavailableError
from weft_common.logging import get_logger

__all__ = ["Asker"]

_LOG = get_logger(__name__)
# With so many questions in a row unanswered the endpoint is away, and asking on is of no use.
_MOST_FAILURES = 8
# Shorter than a pod is given to close.
_WAIT_AT_END_S = 12.0
# An answer is paid for: the bucket gets some time to come back before it is let go.
_KEEP_WAITS_S = (0.5, 2.0, 8.0)
# A shorter wait is as good as none, and counts as not answered.
_SHORTEST_REST_S = 1.0
_LONGEST_REST_S = 3600.0
# So long in a row without an answer: whoever asks for more rest is away.
_MOST_REST_S = 86_400.0


class _RestError(Exception):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds


class Asker:
    """
    Puts the questions of one operation.

    Args:
        interpreter: Who answers.
        journal: Where answers are kept.
        budget: What may be spent.
        operation: Name of the operation.
        gate: Lets so many calls of this process be under way at once.
        max_attempts: How often a question may be sent.
        observe: Counts for metrics.
        rest: Waits for so many seconds.
    """

    def __init__(
        self,
        interpreter: Interpreter,
        journal: Journal,
        budget: Budget,
        *,
        operation: str,
        gate: asyncio.Semaphore,
        max_attempts: int,
        observe: Observer,
        rest: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._interpreter, self._journal, self.budget = interpreter, journal, budget
        self._operation, self._gate, self._max_attempts, self._observe = operation, gate, max_attempts, observe
        self._under_way: set[asyncio.Future[Answer]] = set()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._counted: set[str] = set()
        self._failures = 0
        self._rest, self._rested_s = rest, 0.0
        self._resting: asyncio.Future[None] | None = None

    async def recall(self, question: Question | Embedding) -> None:
        """Count what a question cost before the process died, where nothing needs its answer any more."""
        key = question.key()
        entry = await asyncio.to_thread(self._journal.get, key)
        if entry is not None:
            self._found(question, key, entry)

    async def ask(self, question: Question | Embedding, purpose: str) -> Answer | None:
        """
        Give the answer to a question, or None where nobody answered, however often it was sent.

        Raises:
            BudgetSpentError: The question might go beyond the budget; nothing was sent.
            NobodyAnsweredError: Many questions in a row were not answered.
            FailedPreconditionError: The endpoint answers nothing.
        """
        key = question.key()
        # The same question twice at once is asked once.
        async with self._turns.setdefault(key, asyncio.Lock()):
            entry = await asyncio.to_thread(self._journal.get, key)
            if entry is not None:
                return self._found(question, key, entry)
            while True:
                if self._resting is not None:
                    await asyncio.shield(self._resting)
                async with self._gate:
                    # It may have begun while others were waited for.
                    if self._resting is None:
                        try:
                            return await self._sent(question, key, purpose)
                        except _RestError as told:
                            self._begin_rest(told.seconds)

    def _begin_rest(self, seconds: float) -> None:
        """Nothing is sent until the rest is over; several questions on their way are told of the same one."""
        if self._resting is None:
            _LOG.warning("the endpoint asks for a rest", seconds=seconds)
            self._rested_s += seconds
            self._resting = asyncio.ensure_future(self._rest(seconds))
            self._resting.add_done_callback(self._end_rest)

    def _end_rest(self, _: object) -> None:
        self._resting = None

    async def _sent(self, question: Question | Embedding, key: str, purpose: str) -> Answer | None:
        reservation = await self.budget.reserve(self._max_attempts, question.most_tokens)
        task = asyncio.ensure_future(self._pay(question, key, purpose, reservation.attempts))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        answer: Answer | None = None
        attempts, is_failed = None, True
        try:
            answer = await asyncio.shield(task)
            self._failures, self._rested_s = 0, 0.0
        except asyncio.CancelledError:
            # The answer is kept when it comes, and counted by whoever goes on and finds it.
            attempts, is_failed = 0, False
            raise
        except NotServedError as error:
            attempts = error.attempts
            raise
        except NobodyAnsweredError as error:
            attempts, wait_s = error.attempts, min(error.retry_after_s or 0.0, _LONGEST_REST_S)
            if wait_s >= _SHORTEST_REST_S and self._rested_s + wait_s <= _MOST_REST_S:
                is_failed = False
                raise _RestError(wait_s) from None
            self._failures += 1
            self._observe.call("failed", 0, 0)
            _LOG.warning("a question was not answered", purpose=purpose, error=error.message)
            if self._failures >= _MOST_FAILURES:
                raise
        finally:
            self.budget.settle(reservation, answer, attempts, is_failed=is_failed)
            if is_failed or answer is not None:
                self._counted.add(key)
        return answer

    def broken(self) -> None:
        """Count an answer that was not what was asked for."""
        self.budget.note(Spend(broken=1))
        self._observe.broken()

    async def close(self) -> None:
        """Wait for answers that are on their way, and keep them."""
        if self._resting is not None:
            self._resting.cancel()
        if self._under_way:
            done, late = await asyncio.wait(self._under_way, timeout=_WAIT_AT_END_S)
            for task in late:
                # Sent again and again after its end, it would be asked by whoever goes on as well.
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
            for task in done:
                # Looked at, so that nobody warns of it.
                task.exception()

    async def _pay(self, question: Question | Embedding, key: str, purpose: str, max_attempts: int) -> Answer:
        if isinstance(question, Question):
            answer = await self._interpreter.ask(question, key=key, max_attempts=max_attempts)
        else:
            answer = await self._interpreter.embed(question, key=key, max_attempts=max_attempts)
        self._observe.call(answer.outcome.value, max(0, answer.question_tokens), max(0, answer.answer_tokens))
        if answer.outcome is Outcome.REJECTED:
            _LOG.warning("a question was rejected", purpose=purpose, reason=answer.text[:300])
            return answer
        if answer.outcome is Outcome.STRANGE:
            _LOG.warning("an answer is not of the protocol", purpose=purpose, answer=answer.text[:300])
            self.broken()
            return answer
        for wait_s in _KEEP_WAITS_S:
            try:
                await asyncio.to_thread(self._journal.add, key, Entry(answer, self._operation), purpose)
                return answer
            except UnavailableError as error:
                _LOG.warning("an answer could not be kept yet", error=error.message)
                await asyncio.sleep(wait_s)
        # The answer is here, if nowhere else.
        return answer

    def _found(self, question: Question | Embedding, key: str, entry: Entry) -> Answer:
        if key not in self._counted:
            self._counted.add(key)
            if entry.operation == self._operation:
                self.budget.found(entry.answer, question.most_tokens)
            else:
                self.budget.note(Spend(reused=1))
                self._observe.call("reused", 0, 0)
        return entry.answer
