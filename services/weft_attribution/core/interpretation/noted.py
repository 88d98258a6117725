"""Questions of one feature, and what became of them: why it came to nothing, where it did."""

from weft_attribution.core.interpretation.asking import Asker
from weft_attribution.core.interpretation.ports import Answer, Embedding, Outcome, Question
from weft_attribution.core.interpretation.results import Ending, FeatureResult, plain
from weft_attribution.core.labels import Place

__all__ = ["Noted"]

_BAD = {
    Outcome.REFUSED: Ending.REFUSED,
    Outcome.REJECTED: Ending.REJECTED,
    Outcome.STRANGE: Ending.BROKEN,
}
_EMPTY = "the answer is empty; a model that thinks before it answers needs a longer one"


class Noted:
    """
    Puts questions one after the other, and keeps what went wrong last.

    Args:
        asker: Whom they go to.
    """

    def __init__(self, asker: Asker) -> None:
        self._asker = asker
        self._answer = ""
        self._ending = Ending.UNANSWERED
        self._reason = ""

    async def ask(self, question: Question | Embedding, purpose: str) -> Answer | None:
        """As of the asker, and raises what that raises."""
        answer = await self._asker.ask(question, purpose)
        if answer is None:
            self._ending, self._reason = Ending.UNANSWERED, ""
        else:
            self._answer = answer.text
            if answer.outcome in _BAD:
                self._ending, self._reason = _BAD[answer.outcome], plain(answer.text)
        return answer

    def broken(self) -> None:
        """The last answer was not what was asked for."""
        self._asker.broken()
        self._ending, self._reason = Ending.BROKEN, plain(self._answer) or _EMPTY

    def failure(self, place: Place, label: str = "") -> FeatureResult:
        """What came of the feature, which is nothing."""
        return FeatureResult(place, self._ending, label, self._reason)
