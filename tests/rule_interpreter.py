"""
A stand-in for a language model that knows a few meanings by rule, and texts in which features with them are planted.

    RuleBrain             answers the prompts by looking at the lines
    PlantedSource         an index of features that fire on a digit, a bracket, or one of a few words
    planted_texts         its tokens as bytes
"""

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence

from weft_attribution.core.feature_ports import Examples, Window
from weft_common.errors import FailedPreconditionError, NotFoundError

NEUTRAL = ["the", "a", "of", "and", "to", "in", "is", "it", "on", "at", "by", "we", "you", "they", "was", "had"]
RULES: Mapping[str, Callable[[str], bool]] = {
    "a digit": lambda text: any(character.isdigit() for character in text),
    "a bracket": lambda text: "(" in text or ")" in text,
    **{f"the word {word}": lambda text, word=word: word in text.split() for word in ("river", "stone", "cloud")},
}  # fmt: skip
LABELS = list(RULES)
PLACES = [(number % 2, number // 2) for number in range(len(LABELS))]
_FIRING = [["3", "7"], ["(", ")"], ["river"], ["stone"], ["cloud"]]
VOCABULARY = [f" {word}" for word in [*NEUTRAL, *(text for texts in _FIRING for text in texts)]]
_NUMBERED = re.compile(r"\d+(?: \((\d)\))?: (.*)")
_MARKED = re.compile(r"<<(.*?)>>")


class RuleBrain:
    """Answers as the prompts ask, by the rules above; what fits no rule it calls `something else`."""

    def answer(self, system: str, user: str) -> str:
        label, lines = "", []
        for line in user.splitlines():
            if line.startswith("Label: "):
                label = line.removeprefix("Label: ")
            else:
                match = _NUMBERED.fullmatch(line)
                assert match is not None, line
                lines.append(match[2])
        if '"label"' in system:
            return json.dumps({"label": self._common([_MARKED.findall(line) for line in lines])})
        rule = RULES.get(label, lambda text: False)
        if '"intruder"' in system:
            return json.dumps({"intruder": self._intruder([_MARKED.findall(line) for line in lines])})
        if "<<" in user:
            flags = [all(rule(mark) for mark in _MARKED.findall(line)) for line in lines]
        else:
            flags = [rule(line) for line in lines]
        return json.dumps({"answers": [int(flag) for flag in flags]})

    def _common(self, marked: Sequence[Sequence[str]]) -> str:
        for name, rule in RULES.items():
            if all(rule(mark) for marks in marked for mark in marks):
                return name
        return "something else"

    def _intruder(self, marked: Sequence[Sequence[str]]) -> int:
        best = max(RULES.values(), key=lambda rule: sum(all(map(rule, marks)) for marks in marked))
        return 1 + next((at for at, marks in enumerate(marked) if not all(map(best, marks))), 0)


class PlantedSource:
    """
    Windows of twelve tokens, drawn by a seed; a feature is active on its own tokens and nowhere else.

    Every other feature's tokens stand in active and silent windows alike, half of the time.
    """

    transcoder = "t"
    model = "tiny"
    index_id = "planted"
    num_quantiles = 5

    def __init__(self, *, num_windows: int = 120, seed: int = 0, extra: Mapping[int, str] | None = None) -> None:
        self.vocabulary = dict(enumerate(VOCABULARY)) | dict(extra or {})
        self._num_windows, self._seed = num_windows, seed

    def examples(self, layer: int, index: int) -> Examples:
        feature = self._feature(layer, index)
        rng = random.Random(f"{self._seed} {feature} active")
        windows = [self._window(feature, rng, is_active=True, number=number) for number in range(self._num_windows)]
        return Examples(500, 10_000, tuple(windows[:10]), tuple(windows))

    def quiet(self, layer: int, index: int, count: int) -> Sequence[Window]:
        feature = self._feature(layer, index)
        rng = random.Random(f"{self._seed} {feature} silent")
        return [self._window(feature, rng, is_active=False, number=number) for number in range(count)]

    def _feature(self, layer: int, index: int) -> int:
        if (layer, index) not in PLACES:
            raise NotFoundError(f"no feature {layer}-{index}")
        return PLACES.index((layer, index))

    def _window(self, feature: int, rng: random.Random, *, is_active: bool, number: int) -> Window:
        texts = [f" {rng.choice(NEUTRAL)}" for _ in range(12)]
        free = list(range(12))
        rng.shuffle(free)
        for other, firing in enumerate(_FIRING):
            if other == feature and not is_active:
                continue
            if other == feature or rng.random() < 0.5:
                texts[free.pop()] = f" {rng.choice(firing)}"
        activations = tuple(
            1.0 + number % 7 if is_active and text.strip() in _FIRING[feature] else 0.0 for text in texts
        )
        tokens = tuple(VOCABULARY.index(text) for text in texts)
        peak = max(activations)
        peak_at = activations.index(peak) if is_active else -1
        return Window(number, 0, tokens, activations, peak, peak_at, number % self.num_quantiles if is_active else -1)


class PlantedSources:
    """One index, of the transcoder `t`."""

    def __init__(self, source: PlantedSource) -> None:
        self._source = source

    def open(self, transcoder: str, index_id: str = "") -> PlantedSource:
        if index_id not in ("", self._source.index_id):
            raise NotFoundError(f"no index {index_id}")
        if transcoder != self._source.transcoder:
            raise FailedPreconditionError(f"transcoders/{transcoder} has no index")
        return self._source


def planted_texts(source: PlantedSource) -> Callable[[Sequence[int]], object]:
    """The source's tokens as bytes, as the port has it."""

    async def texts(token_ids: Sequence[int]) -> tuple[bytes, ...]:
        return tuple(source.vocabulary[token].encode() for token in token_ids)

    return texts
