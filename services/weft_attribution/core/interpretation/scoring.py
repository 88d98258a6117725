"""
How well labels predict where their features are active, on examples that nothing was explained with.

A control may run beside: every feature is asked about with another one's label over the very same lines. What such
labels score is what chance scores, whatever the texts and the scorer are like.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from weft_attribution.core.feature_ports import ExampleSource
from weft_attribution.core.interpretation.answers import SCORE_TOKENS, read_flags, read_intruder
from weft_attribution.core.interpretation.asking import Asker
from weft_attribution.core.interpretation.estimates import Estimate, area
from weft_attribution.core.interpretation.examples import Shown, held_out, quiet, seeded, shown
from weft_attribution.core.interpretation.noted import Noted
from weft_attribution.core.interpretation.pairing import KeptTests, Tested, paired
from weft_attribution.core.interpretation.ports import Embedding, Outcome, Question, Texts
from weft_attribution.core.interpretation.prompts import Prompt
from weft_attribution.core.interpretation.results import Ending, FeatureResult, Rating
from weft_attribution.core.interpretation.score_reports import KindReport, Scored
from weft_attribution.core.interpretation.scorers import (
    Drawn,
    Tester,
    Trial,
    draw_detection,
    draw_fuzzing,
    draw_intruders,
)
from weft_attribution.core.interpretation.tallies import Found, Tally
from weft_attribution.core.interpretation.vectors import cosine, read_vectors
from weft_attribution.core.label_pages import one_a_page
from weft_attribution.core.label_store import LabelStore
from weft_attribution.core.labels import Label, Place, Score, ScoreKind
from weft_common.errors import NotFoundError

__all__ = ["MIN_EXAMPLES", "ScoreSettings", "Scorer"]

MIN_EXAMPLES = 4
_INTRUDER_QUESTIONS = 10
# Vectors of some thousand numbers: an answer stays far below what is read of one.
_TEXTS_AN_EMBEDDING = 16


@dataclass(frozen=True)
class ScoreSettings:
    """
    How labels are scored.

    Args:
        kinds: The tests.
        model: Model of the endpoint that takes them.
        embedding_model: Model of the endpoint that embeds.
        prompts: What is asked with, by kind.
        num_examples: Most active lines of each feature, and as many silent ones.
        structured: Whether the endpoint holds answers to a JSON schema.
        control: Whether shuffled labels are tested beside, by detection and fuzzing.
        max_answer_tokens: Longest answer; a model that thinks first counts its thoughts.
        is_greedy: At temperature 0.
    """

    kinds: tuple[ScoreKind, ...]
    model: str
    embedding_model: str
    prompts: Mapping[ScoreKind, Prompt]
    num_examples: int
    structured: bool
    control: bool
    max_answer_tokens: int = SCORE_TOKENS
    is_greedy: bool = True


class Scorer:
    """
    Scores the labels of one transcoder's features.

    Args:
        source: Its examples.
        labels: All labels.
        texts: Its model's tokens as text.
        settings: How.
    """

    def __init__(self, source: ExampleSource, labels: LabelStore, texts: Texts, settings: ScoreSettings) -> None:
        self._source, self._labels, self._texts, self._settings = source, labels, texts, settings
        self._tested: Mapping[Place, Tested] = {}
        self.scored = Scored(reports={kind: KindReport() for kind in settings.kinds})

    async def read_labels(self, places: Sequence[Place], kept: KeptTests | None = None) -> None:
        """
        Read the labels that stand. They are what is scored, whatever is said meanwhile.

        Args:
            places: The features.
            kept: What was read when the work began, or where it is to be written down; None keeps nothing.
        """
        before = None if kept is None else await asyncio.to_thread(kept.read)
        if before is not None:
            self._tested = before
            return
        wanted, standing = set(places), dict[Place, Label]()
        for page in one_a_page(places):
            # A page at a time, so that work that is cancelled ends.
            for each in await asyncio.to_thread(self._labels.page, self._source.transcoder, page):
                label = each.label() if each.place in wanted else None
                if label is not None:
                    standing[each.place] = label
        self._tested = await asyncio.to_thread(paired, standing, control=self._settings.control)
        if kept is not None:
            self._tested = await asyncio.to_thread(kept.keep, self._tested)

    async def score(self, place: Place, asker: Asker) -> FeatureResult:
        """Score the label of one feature. Raises what `Asker.ask` raises."""
        label = self._tested.get(place)
        if label is None:
            self.scored.unlabelled += 1
            return FeatureResult(place, Ending.UNLABELLED)
        lines = await self._lines(place)
        if lines is None:
            self.scored.too_few += 1
            return FeatureResult(place, Ending.TOO_FEW, label.text)
        scores, noted = {}, Noted(asker)
        tests: list[Rating] = []
        for kind in self._settings.kinds:
            estimate, unanswered = await self._estimate(kind, place, lines, label.text, noted, tests)
            if estimate is not None:
                scores[kind] = self._score(kind, estimate, unanswered)
                tests.append(Rating.of(kind, estimate, unanswered))
        kept = bool(scores) and await asyncio.to_thread(
            self._labels.add_scores, self._source.transcoder, place, label.revision, scores
        )
        if kept:
            for kind, score in scores.items():
                self.scored.reports[kind].values.append(score.value)
            self.scored.scored += 1
            return FeatureResult(place, Ending.SCORED, label.text, tests=tuple(tests))
        self.scored.unanswered += 1
        return FeatureResult(place, Ending.CHANGED, label.text) if scores else noted.failure(place, label.text)

    async def _estimate(
        self, kind: ScoreKind, place: Place, lines: "_Lines", label: str, asker: Noted, tests: list[Rating]
    ) -> tuple[Estimate | None, int]:
        purpose = f"{kind.value} {place.layer}-{place.index}"
        if kind is ScoreKind.EMBEDDING:
            return await self._embedded(lines, label, asker, purpose)
        trials = self._trials(kind, place, lines, label)
        if kind is ScoreKind.INTRUDER:
            found = Found()
            for trial in trials:
                text = await _answer(trial.question, asker, purpose)
                at = None if text is None else read_intruder(text, len(trial.truth))
                if text is not None and at is None:
                    asker.broken()
                found.decide(None if at is None else not trial.truth[at])
            return found.estimate(), found.unanswered
        tally = await _decided(trials, asker, purpose)
        other = self._tested[place].control
        if other is not None:
            tests += await self._control(kind, place, lines, self._tested[other].text, asker)
        self.scored.reports[kind].pooled.add(tally)
        return tally.estimate(), tally.unanswered

    async def _control(self, kind: ScoreKind, place: Place, lines: "_Lines", label: str, asker: Noted) -> list[Rating]:
        """The same test with another feature's label: what chance scores on these lines."""
        trials = self._trials(kind, place, lines, label)
        tally = await _decided(trials, asker, f"control of {kind.value} {place.layer}-{place.index}")
        self.scored.reports[kind].control.add(tally)
        estimate = tally.estimate()
        return [] if estimate is None else [Rating.of(kind, estimate, tally.unanswered, is_control=True)]

    async def _embedded(self, lines: "_Lines", label: str, asker: Noted, purpose: str) -> tuple[Estimate | None, int]:
        count = len(lines.active) + len(lines.silent)
        vectors = []
        for embedding in self._embeddings(lines, label):
            text = await _answer(embedding, asker, purpose)
            found = None if text is None else read_vectors(text, len(embedding.texts))
            if found is None:
                if text is not None:
                    asker.broken()
                return None, count
            vectors += found
        if len({len(vector) for vector in vectors}) != 1:
            asker.broken()
            return None, count
        near = [cosine(vectors[-1], vector) for vector in vectors[:-1]]
        return area(near[: len(lines.active)], near[len(lines.active) :]), 0

    def _trials(self, kind: ScoreKind, place: Place, lines: "_Lines", label: str) -> list[Trial]:
        how = self._settings
        tester = Tester(how.model, how.prompts[kind], how.structured, how.max_answer_tokens, how.is_greedy)
        rng = seeded(self._source.transcoder, *place, kind.value)
        if kind is ScoreKind.INTRUDER:
            return tester.intruders(draw_intruders(lines.active, lines.silent, _INTRUDER_QUESTIONS, rng))
        draw = draw_detection if kind is ScoreKind.DETECTION else draw_fuzzing
        drawn: list[Drawn] = draw(lines.active, lines.silent, rng)
        return tester.flags(drawn, label)

    def _embeddings(self, lines: "_Lines", label: str) -> list[Embedding]:
        model = self._settings.embedding_model
        texts = ["".join(each.texts) for each in (*lines.active, *lines.silent)]
        parts = [texts[low : low + _TEXTS_AN_EMBEDDING] for low in range(0, len(texts), _TEXTS_AN_EMBEDDING)]
        return [*(Embedding(model, tuple(part)) for part in parts), Embedding(model, (label,))]

    def _score(self, kind: ScoreKind, estimate: Estimate, unanswered: int) -> Score:
        prompt = self._settings.prompts.get(kind)
        return Score(
            estimate.value,
            estimate.low,
            estimate.high,
            estimate.n,
            unanswered,
            self._settings.embedding_model if kind is ScoreKind.EMBEDDING else self._settings.model,
            "" if prompt is None else prompt.name,
            "" if prompt is None else prompt.sha256,
        )

    async def _lines(self, place: Place) -> "_Lines | None":
        count = self._settings.num_examples
        try:
            examples = await asyncio.to_thread(self._source.examples, place.layer, place.index)
            silent = await asyncio.to_thread(quiet, self._source, place, count)
        except NotFoundError:
            return None
        active = held_out(examples, count)
        few = min(len(active), len(silent))
        if few < MIN_EXAMPLES:
            return None
        both = await shown([*active[:few], *silent[:few]], self._texts)
        return _Lines(both[:few], both[few:])


@dataclass(frozen=True)
class _Lines:
    active: Sequence[Shown]
    silent: Sequence[Shown]


async def _answer(question: Question | Embedding, asker: Noted, purpose: str) -> str | None:
    answer = await asker.ask(question, purpose)
    return answer.text if answer is not None and answer.outcome is Outcome.ANSWERED else None


async def _decided(trials: Sequence[Trial], asker: Noted, purpose: str) -> Tally:
    tally = Tally()
    for trial in trials:
        text = await _answer(trial.question, asker, purpose)
        flags = None if text is None else read_flags(text, len(trial.truth))
        if text is not None and flags is None:
            asker.broken()
        tally.decide(trial.truth, flags)
    return tally
