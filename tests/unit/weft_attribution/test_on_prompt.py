"""What fires on a text, beside an index that has never seen some of it."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from index_rig import REVISION, IndexRig

from weft_attribution.core.feature_index.indexing import FeatureIndexing
from weft_attribution.core.feature_index.on_prompt import PromptActivations, PromptQuestion
from weft_attribution.core.feature_index.open_indexes import OpenIndexes
from weft_attribution.core.ports import Capture, ModelInfo, Token
from weft_store.opening import open_store

TOKENS = tuple(Token(number, f"t{number}") for number in range(6))


class Runner:
    """A model whose streams are much larger than those of the dataset."""

    info = ModelInfo("tiny", "Reference", 2, 4, 40, 64, REVISION)

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self.streams = {f"layers.{layer}.mlp_in": rng.normal(0, 8, (6, 4)).astype(np.float32) for layer in range(2)}

    async def model(self, name: str) -> ModelInfo:
        return self.info

    async def tokenize(self, model: str, text: str) -> tuple[Token, ...]:
        return TOKENS

    async def capture(self, model: str, token_ids: Sequence[int], hooks: Sequence[str]) -> Capture:
        return Capture(self.info, TOKENS, {hook: self.streams[hook] for hook in hooks})


async def test_feature_that_the_index_never_saw_has_no_relative_activation() -> None:
    """It comes after all that are known, the stronger first; where there is no index none has one."""
    rig, runner = IndexRig.make(open_store("memory://"), num_features=40, bias=-0.5), Runner()
    any_runner: Any = runner
    models: Any = SimpleNamespace(weights=lambda model: SimpleNamespace(first_position=1))
    indexes = OpenIndexes(rig.store, look_s=0)
    prompts = PromptActivations(rig.store, any_runner, models, indexes, max_prompt_tokens=10, memory_bytes=1 << 20)
    question = PromptQuestion("t", "text", max_features=1000)
    plain = await prompts.find(question)
    assert {each.relative_max for each in plain.features} == {0.0}
    peaks = [max(each.activations) for each in plain.features]
    assert peaks == sorted(peaks, reverse=True)
    indexing = FeatureIndexing(rig.store, any_runner, rig, memory_bytes=1 << 30, workers=1)
    await indexing.build(rig.request(), lambda done, total: None)
    answer = await prompts.find(question)
    assert len(answer.features) == len(plain.features)
    known = [rig.activations(each.layer)[:, each.index] for each in answer.features]
    largest = [np.nanmax(acts) for acts in known]
    unknown = [each == 0 for each in largest]
    assert 5 < sum(unknown) < len(unknown) - 5
    assert unknown == sorted(unknown)
    for feature, most in zip(answer.features, largest, strict=True):
        assert feature.relative_max == (pytest.approx(max(feature.activations) / most, rel=1e-5) if most else 0)
    shares = [each.relative_max for each in answer.features]
    assert shares == sorted(shares, reverse=True)
    last = [max(each.activations) for each in answer.features if not each.relative_max]
    assert last == sorted(last, reverse=True)
