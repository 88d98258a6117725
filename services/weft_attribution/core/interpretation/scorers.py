"""
The tests that a label is put to, as questions with known answers.

Sources: delphi's detection, fuzzing and intruder scorers (Paulo et al. 2024). Deviations: prompts of our own; lines are
drawn by a hash of their feature, so that the same lines are asked of every label, shuffled ones too.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from weft_attribution.core.interpretation.answers import FLAGS, INTRUDER, schema
from weft_attribution.core.interpretation.examples import Shown, marked
from weft_attribution.core.interpretation.lines import escaped, line, numbered
from weft_attribution.core.interpretation.ports import Question
from weft_attribution.core.interpretation.prompts import Prompt

__all__ = ["Drawn", "Tester", "Trial", "draw_detection", "draw_fuzzing", "draw_intruders"]

_LINES_A_QUESTION = 5
_SHOWN_BESIDE_INTRUDER = 4


@dataclass(frozen=True)
class Drawn:
    """
    Lines of one question.

    Args:
        lines: The lines.
        truth: Which of them are the feature's.
    """

    lines: tuple[str, ...]
    truth: tuple[bool, ...]


@dataclass(frozen=True)
class Trial:
    """A question, and which of its lines are the feature's."""

    question: Question
    truth: tuple[bool, ...]


def draw_detection(active: Sequence[Shown], silent: Sequence[Shown], rng: random.Random) -> list[Drawn]:
    """Lines with nothing marked, of which some are the feature's."""
    lines = [("".join(map(escaped, each.texts)), True) for each in active]
    lines += [("".join(map(escaped, each.texts)), False) for each in silent]
    return _questions(lines, rng)


def draw_fuzzing(active: Sequence[Shown], silent: Sequence[Shown], rng: random.Random) -> list[Drawn]:
    """The feature's lines with its tokens marked, and silent ones with as many marked at random."""
    lines = [(line(each.texts, marked(each.window)), True) for each in active]
    lines += [(_marked_at_random(each, _num_marked(active), rng), False) for each in silent]
    return _questions(lines, rng)


def draw_intruders(
    active: Sequence[Shown], silent: Sequence[Shown], num_questions: int, rng: random.Random
) -> list[Drawn]:
    """Questions with a few of the feature's lines, of one quantile where there are enough, and one silent line."""
    quantiles = sorted({each.window.quantile for each in active})
    by_quantile = [[each for each in active if each.window.quantile == quantile] for quantile in quantiles]
    if any(len(group) < _SHOWN_BESIDE_INTRUDER for group in by_quantile):
        # The few quantiles that have enough would have their lines in every question.
        by_quantile = [list(active)]
    found = []
    for number, intruder in enumerate(silent[:num_questions]):
        group = by_quantile[number % len(by_quantile)]
        others = rng.sample(group, min(_SHOWN_BESIDE_INTRUDER, len(group)))
        lines = [line(each.texts, marked(each.window)) for each in others]
        at = rng.randrange(len(lines) + 1)
        lines.insert(at, _marked_at_random(intruder, _num_marked(others), rng))
        found.append(Drawn(tuple(lines), tuple(place != at for place in range(len(lines)))))
    return found


@dataclass(frozen=True)
class Tester:
    """
    Makes questions of lines.

    Args:
        model: Model of the endpoint.
        prompt: What it is asked with.
        structured: Whether the endpoint holds answers to a JSON schema.
        max_answer_tokens: Longest answer.
        is_greedy: At temperature 0.
    """

    model: str
    prompt: Prompt
    structured: bool
    max_answer_tokens: int
    is_greedy: bool

    def flags(self, drawn: Sequence[Drawn], label: str) -> list[Trial]:
        """A decision on each line, by the label."""
        return [self._trial(each, FLAGS, {"label": escaped(label)}) for each in drawn]

    def intruders(self, drawn: Sequence[Drawn]) -> list[Trial]:
        """The number of one line."""
        return [self._trial(each, INTRUDER, {}) for each in drawn]

    def _trial(self, drawn: Drawn, kind: str, values: dict[str, str]) -> Trial:
        count = len(drawn.lines)
        values = {**values, "count": str(count), "lines": numbered(drawn.lines)}
        system, user = self.prompt.filled(values)
        form = schema(kind, count) if self.structured else ""
        return Trial(Question(self.model, system, user, self.max_answer_tokens, form, self.is_greedy), drawn.truth)


def _num_marked(active: Sequence[Shown]) -> int:
    """As many tokens as are marked in one of the feature's lines on average, rounded up."""
    return max(1, math.ceil(sum(sum(marked(each.window)) for each in active) / max(1, len(active))))


def _marked_at_random(silent: Shown, count: int, rng: random.Random) -> str:
    # What has no text cannot be seen to be marked.
    places_with_text = [place for place, text in enumerate(silent.texts) if text]
    places = set(rng.sample(places_with_text, min(count, len(places_with_text))))
    return line(silent.texts, [place in places for place in range(len(silent.texts))])


def _questions(lines: list[tuple[str, bool]], rng: random.Random) -> list[Drawn]:
    rng.shuffle(lines)
    groups = [lines[at : at + _LINES_A_QUESTION] for at in range(0, len(lines), _LINES_A_QUESTION)]
    return [Drawn(tuple(text for text, _ in group), tuple(truth for _, truth in group)) for group in groups]
