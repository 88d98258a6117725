"""
Labels from examples: a language model is shown where a feature is active and says what that has in common.

Source: delphi's default explainer for the course of it: 40 examples over 10 quantiles. Deviations: prompts of our own,
examples as escaped lines, answers as JSON, and half of all examples kept apart for scoring.
"""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass

from weft_attribution.core.feature_ports import ExampleSource, Window
from weft_attribution.core.interpretation.answers import EXPLAIN_TOKENS, LABEL, read_label, schema
from weft_attribution.core.interpretation.asking import Asker
from weft_attribution.core.interpretation.examples import Shown, explaining, marked, shown
from weft_attribution.core.interpretation.lines import line, numbered
from weft_attribution.core.interpretation.noted import Noted
from weft_attribution.core.interpretation.ports import Outcome, Question, Texts
from weft_attribution.core.interpretation.prompts import Prompt
from weft_attribution.core.interpretation.results import Ending, FeatureResult
from weft_attribution.core.label_store import LabelStore
from weft_attribution.core.labels import Label, Origin, Place
from weft_common.errors import NotFoundError

__all__ = ["MIN_EXAMPLES", "ExplainSettings", "Explained", "Explainer"]

MIN_EXAMPLES = 4
_STRENGTHS = 9


@dataclass(frozen=True)
class ExplainSettings:
    """
    How features are explained.

    Args:
        model: Model of the endpoint.
        prompt: What it is asked with.
        num_examples: Most examples that it is shown of one feature.
        structured: Whether the endpoint holds answers to a JSON schema.
        max_answer_tokens: Longest answer; a model that thinks first counts its thoughts.
        is_greedy: At temperature 0.
    """

    model: str
    prompt: Prompt
    num_examples: int
    structured: bool
    max_answer_tokens: int = EXPLAIN_TOKENS
    is_greedy: bool = True


@dataclass
class Explained:
    """
    What came of it, in features.

    Args:
        labelled: Have a new label.
        kept: Had one already: a person's, or the same model's by the same prompt.
        too_few: Have too few examples.
        unlabelled: Got no label, since the answer was refused, broken or never came.
    """

    labelled: int = 0
    kept: int = 0
    too_few: int = 0
    unlabelled: int = 0

    @property
    def done(self) -> int:
        """Features that are through."""
        return self.labelled + self.kept + self.too_few + self.unlabelled


class Explainer:
    """
    Labels the features of one transcoder.

    Args:
        source: Its examples.
        labels: All labels.
        texts: Its model's tokens as text.
        settings: How.
        since_s: When the work was asked for; labels from then on are its own, also where its process died since.
    """

    def __init__(
        self, source: ExampleSource, labels: LabelStore, texts: Texts, settings: ExplainSettings, since_s: float
    ) -> None:
        self._source, self._labels, self._texts, self._settings = source, labels, texts, settings
        self._since_s = since_s
        self.explained = Explained()

    async def question(self, place: Place) -> Question | None:
        """What is asked of a feature; None where it has too few examples."""
        try:
            examples = await asyncio.to_thread(self._source.examples, place.layer, place.index)
        except NotFoundError:
            return None
        windows = explaining(examples, self._settings.num_examples)
        if len(windows) < MIN_EXAMPLES:
            return None
        system, user = self._settings.prompt.filled({"lines": _lines(await shown(windows, self._texts))})
        form = schema(LABEL) if self._settings.structured else ""
        settings = self._settings
        return Question(settings.model, system, user, settings.max_answer_tokens, form, settings.is_greedy)

    async def explain(self, place: Place, asker: Asker) -> FeatureResult:
        """Label one feature, unless it has a label that is to stay. Raises what `Asker.ask` raises."""
        there = await asyncio.to_thread(self._labels.get, self._source.transcoder, place)
        mine, stands = there.label(Origin.MODEL), there.label()
        if mine is not None and self._is_mine(mine, self._since_s):
            # Made before this work's process died, perhaps after its spend was told last.
            question = await self.question(place)
            if question is not None:
                await asker.recall(question)
            self.explained.labelled += 1
            return FeatureResult(place, Ending.LABELLED, mine.text)
        if stands is not None and (stands.origin is Origin.HUMAN or self._is_mine(mine)):
            self.explained.kept += 1
            return FeatureResult(place, Ending.KEPT, stands.text)
        question = await self.question(place)
        if question is None:
            self.explained.too_few += 1
            return FeatureResult(place, Ending.TOO_FEW)
        noted = Noted(asker)
        answer = await noted.ask(question, f"explain {place.layer}-{place.index}")
        text = None
        if answer is not None and answer.outcome is Outcome.ANSWERED:
            text = read_label(answer.text)
            if text is None:
                noted.broken()
        if text is None:
            self.explained.unlabelled += 1
            return noted.failure(place)
        prompt = self._settings.prompt
        label = Label(
            place,
            text,
            Origin.MODEL,
            explainer=self._settings.model,
            prompt=prompt.name,
            prompt_sha256=prompt.sha256,
        )
        await asyncio.to_thread(self._labels.add, self._source.transcoder, label)
        self.explained.labelled += 1
        return FeatureResult(place, Ending.LABELLED, text)

    def _is_mine(self, label: Label | None, since_s: float = 0.0) -> bool:
        made_with = (self._settings.model, self._settings.prompt.sha256)
        return label is not None and label.create_s >= since_s and (label.explainer, label.prompt_sha256) == made_with


def _lines(examples: Sequence[Shown]) -> str:
    # Never 0: they are windows in which the feature is active.
    highest = max(_peak(each.window) for each in examples)
    notes = [str(max(1, math.ceil(_STRENGTHS * _peak(each.window) / highest))) for each in examples]
    return numbered([line(each.texts, marked(each.window)) for each in examples], notes)


def _peak(window: Window) -> float:
    return max(window.activations, default=0.0)
