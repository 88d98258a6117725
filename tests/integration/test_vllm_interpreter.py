"""Labels by a real language model: vLLM's own server with SmolLM2 explains and scores planted features."""

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from docs_blocks import ROOT
from rule_interpreter import PLACES, PlantedSource, planted_texts
from vllm_machine import on_vllm
from vllm_server import MODEL, vllm_server

from weft_attribution.adapters.openai_interpreter import openai_interpreter
from weft_attribution.core.interpretation.asking import Asker
from weft_attribution.core.interpretation.budget import Budget
from weft_attribution.core.interpretation.explaining import Explainer, ExplainSettings
from weft_attribution.core.interpretation.journal import Journal
from weft_attribution.core.interpretation.prompts import load_prompt
from weft_attribution.core.interpretation.scoring import Scorer, ScoreSettings
from weft_attribution.core.label_store import LabelStore
from weft_attribution.core.labels import Place, ScoreKind
from weft_store import open_store

pytestmark = on_vllm


class Uncounted:
    """Metrics that nobody reads."""

    def call(self, result: str, question_tokens: int, answer_tokens: int) -> None:
        return

    def broken(self) -> None:
        return


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Base URL of a server that is ready."""
    models = Path(os.environ.get("WEFT_TEST_MODELS_DIR", ROOT / ".weft" / "models"))
    (folder,) = [path for path in models.iterdir() if (path / "config.json").is_file()]
    with vllm_server(sys.executable, folder, tmp_path_factory.mktemp("vllm") / "log") as served:
        yield served


@pytest.mark.timeout(600)
async def test_small_model_labels_and_scores_what_it_is_shown(url: str) -> None:
    """
    Held to a schema, its answers are all of the form that is asked for; the scores are what they are.

    A model of this size understands little, so that nothing is asked of the scores but intervals and counts.
    """
    store, source = open_store("memory://"), PlantedSource()
    labels, places = LabelStore(store), [Place(*place) for place in PLACES[:2]]
    async with openai_interpreter(url, "", timeout_s=120.0) as interpreter:
        asker = Asker(
            interpreter,
            Journal(store, "t", url),
            Budget(100),
            operation="operations/a",
            gate=asyncio.Semaphore(4),
            max_attempts=2,
            observe=Uncounted(),
        )
        explain = ExplainSettings(MODEL, load_prompt("explain"), 12, structured=True)
        explainer = Explainer(source, labels, planted_texts(source), explain, 0.0)
        for place in places:
            await explainer.explain(place, asker)
        kinds = (ScoreKind.DETECTION,)
        prompts = {kind: load_prompt(kind.value) for kind in kinds}
        settings = ScoreSettings(kinds, MODEL, "", prompts, 5, structured=True, control=True)
        scorer = Scorer(source, labels, planted_texts(source), settings)
        await scorer.read_labels(places)
        for place in places:
            await scorer.score(place, asker)
    spend = asker.budget.spend
    found = [labels.get("t", place).label() for place in places]
    print([(each.text, each.scores) if each else None for each in found], spend)  # noqa: T201  shown with -s
    assert spend.calls == spend.answered >= 2
    assert spend.refused == spend.rejected == spend.failed == 0
    assert spend.question_tokens > 100 * spend.calls
    assert explainer.explained.labelled + spend.broken >= 2
    for each in found:
        if each is not None:
            assert 1 <= len(each.text) <= 300
            for score in each.scores.values():
                assert 0 <= score.low <= score.value <= score.high <= 1
