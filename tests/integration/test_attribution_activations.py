"""Graphs over a real activations service: tiny models always, the real one with the marker."""

from pathlib import Path

import numpy as np
import pytest
from attribution_real import REAL_MODEL, activations, models_dir, random_transcoder
from tiny_models import make_gpt2, make_llama
from transformers import AutoTokenizer

from weft_attribution.core.graphs import Graphs
from weft_attribution.core.intervening import Change
from weft_attribution.core.model_folder import ModelFolder
from weft_attribution.core.ports import Addition
from weft_attribution.core.records import GraphRequest, GraphSettings
from weft_store.opening import open_store

PROMPT = "The capital of 東京 is"
"""The middle of it is more tokens than characters, in every tokenizer here."""


@pytest.mark.parametrize("family", ["llama", "gpt2"])
async def test_tiny_model_graph_conserves_and_predicts(tmp_path: Path, family: str) -> None:
    """Captured streams add up to each target, and frozen runs of the service change logits as edges say."""
    {"llama": make_llama, "gpt2": make_gpt2}[family](tmp_path / "models" / family)
    await _check(tmp_path, tmp_path / "models", family, num_features=64, active=8)


@pytest.mark.real
async def test_real_model_graph_conserves_and_predicts(tmp_path: Path) -> None:
    """On SmolLM2 the conservation error stays below 1e-4 in float32."""
    await _check(tmp_path, models_dir(), REAL_MODEL, num_features=256, active=12)


async def _check(tmp_path: Path, models: Path, model: str, *, num_features: int, active: int) -> None:
    store = open_store(f"file://{tmp_path}/bucket")
    async with activations(tmp_path, models) as runner:
        await random_transcoder(
            store, tmp_path, runner, model, "t", prompt=PROMPT, num_features=num_features, active=active
        )
        graphs = Graphs(store, runner, ModelFolder(models), max_prompt_tokens=64, max_features=50_000)
        request = GraphRequest("g", GraphSettings(model, "t", PROMPT, node_threshold=1.0, edge_threshold=0.9999), 0.0)
        graphs.begin(request)
        document = await graphs.build(request, lambda stage, done, total: None)
        texts = [text for _, text in document["tokens"]]
        assert len(texts) > len(PROMPT.split()) + 1
        assert "".join(texts) == PROMPT
        assert document["json"]["metadata"]["prompt_tokens"] == texts
        statistics = document["statistics"]
        assert statistics["num_features"] > 10 * len(document["tokens"])
        assert statistics["conservation_error"] < 1e-4
        assert 0 < statistics["replacement_score"] < 1
        features = [node for node in document["json"]["nodes"] if node["feature_type"].startswith("cross")]
        strongest = min(features, key=lambda node: node["influence"])
        result = await graphs.intervene("g", [Change(strongest["node_id"], factor=0.0)])
        predicted = np.array([effect["predicted"] for effect in result["effects"]])
        frozen = np.array([effect["measured_frozen"] for effect in result["effects"]])
        np.testing.assert_allclose(frozen, predicted, rtol=2e-3, atol=2e-4 * max(1.0, np.abs(predicted).max()))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
async def test_generated_tokens_have_what_is_added_everywhere(tmp_path: Path, family: str) -> None:
    """Token by token they are the most likely of passes over all tokens so far, with the same additions in them."""
    {"llama": make_llama, "gpt2": make_gpt2}[family](tmp_path / "models" / family)
    async with activations(tmp_path, tmp_path / "models") as runner:
        info, tokenizer = await runner.model(family), AutoTokenizer.from_pretrained(tmp_path / "models" / family)
        ids = [token.id for token in await runner.tokenize(family, PROMPT)]
        rng = np.random.default_rng(3)
        vectors = [rng.normal(size=(rows, info.d_model)).astype(np.float32) for rows in (1, 2)]
        additions = [Addition(0, (), vectors[0]), Addition(1, (1, 2), vectors[1])]
        plain = await runner.generate(family, ids, (), max_new_tokens=4)
        changed = await runner.generate(family, ids, additions, max_new_tokens=4)
        for found, added in ((plain, ()), (changed, additions)):
            so_far = list(ids)
            for token in found:
                capture = await runner.steer(
                    family, so_far, added, held_layers=(), freeze_attention=False, hooks=["logits"]
                )
                logits = capture.tensors["logits"].astype(np.float64)
                shares = np.exp(logits - logits.max())
                assert token.token.id == int(logits.argmax())
                assert token.probability == pytest.approx(float(shares.max() / shares.sum()), rel=1e-3)
                so_far.append(token.token.id)
            # What tokens say together is what the tokenizer reads them as.
            told = "".join(token.token.text for token in found)
            assert told == tokenizer.decode([token.token.id for token in found], clean_up_tokenization_spaces=False)
        assert [each.probability for each in plain] != [each.probability for each in changed]
