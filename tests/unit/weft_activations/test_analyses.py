"""Logit lens, logit attribution, patterns and head scores against transformers' own modules, worked out in float64."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harvest_fakes import FakeBackend
from tiny_models import make_gpt2, make_llama, make_model
from transformers import AutoModelForCausalLM

from weft_activations.adapters.transformers_backend import TransformersBackend
from weft_activations.core.analyses import logit_lens as lens_module
from weft_activations.core.analyses.head_scores import repeated_tokens, score_heads, score_pattern
from weft_activations.core.analyses.logit_attribution import Level, attribute_logits
from weft_activations.core.analyses.logit_lens import LensBlock, LensStart, logit_lens
from weft_activations.core.analyses.patterns import PatternsStart, attention_patterns
from weft_activations.core.changing import Prompt
from weft_activations.core.inference import Inference
from weft_common.errors import FailedPreconditionError, InvalidArgumentError, ResourceExhaustedError

IDS = (280, 283, 264, 273, 302, 290, 276)
PROMPT = Prompt(token_ids=IDS)


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_llama(folder / "llama", add_bos=True)
    make_gpt2(folder / "gpt2")
    return folder


@pytest.fixture(scope="module")
def inference(models_dir: Path) -> Any:
    made = Inference(TransformersBackend(models_dir))
    yield made
    made.close()


@pytest.fixture(params=["llama", "gpt2"])
def model_id(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def own(models_dir: Path, model_id: str) -> Any:
    """Transformers' own model in float64, with eager attention."""
    return AutoModelForCausalLM.from_pretrained(
        models_dir / model_id, local_files_only=True, dtype=torch.float64, attn_implementation="eager"
    ).eval()


def own_lens(own: Any, ids: tuple[int, ...] = IDS) -> np.ndarray[Any, Any]:
    """Logits [L + 1, P, V] at every depth, by the model's own modules."""
    with torch.no_grad():
        states = own(torch.tensor([ids]), output_hidden_states=True).hidden_states
        norm = own.transformer.ln_f if hasattr(own, "transformer") else own.model.norm
        # transformers norms the last state already.
        depths = [own.lm_head(norm(state)) for state in states[:-1]] + [own.lm_head(states[-1])]
    return np.stack([logits[0].numpy() for logits in depths])


async def gathered(parts: AsyncIterator[LensStart | LensBlock]) -> tuple[LensStart, dict[str, np.ndarray[Any, Any]]]:
    """Put a lens together again."""
    start = None
    blocks: list[LensBlock] = []
    async for part in parts:
        if isinstance(part, LensStart):
            start = part
        else:
            blocks.append(part)
    assert start is not None
    top_ids = [
        np.reshape([token.token_id for token in block.top_tokens], block.top_probabilities_NPK.shape)
        for block in blocks
    ]
    found = {
        "top_ids": np.concatenate(top_ids, 1),
        "top_probabilities": np.concatenate([block.top_probabilities_NPK for block in blocks], 1),
        "top_logits": np.concatenate([block.top_logits_NPK for block in blocks], 1),
        "kl": np.concatenate([block.kl_NP for block in blocks], 1),
    }
    if start.target is not None:
        targets = [block.target for block in blocks if block.target is not None]
        found["logits"] = np.concatenate([target.logits_NP for target in targets], 1)
        found["probabilities"] = np.concatenate([target.probabilities_NP for target in targets], 1)
        found["ranks"] = np.concatenate([target.ranks_NP for target in targets], 1)
    assert [block.first for block in blocks] == np.cumsum([0, *(b.num_positions for b in blocks[:-1])]).tolist()
    return start, found


async def test_logit_lens_is_the_models_last_step_at_every_depth(
    inference: Inference, own: Any, model_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens, probabilities, ranks and divergences are those of the model's own norm and unembedding, in blocks too."""
    monkeypatch.setattr(lens_module, "_BLOCK_BYTES", 2 * 8 * 320)
    start, found = await gathered(logit_lens(inference, model_id, PROMPT, num_top_tokens=4, target_token_id=17))
    logits = own_lens(own)
    shifted = logits - logits.max(-1, keepdims=True)
    probabilities = np.exp(shifted) / np.exp(shifted).sum(-1, keepdims=True)
    order = np.argsort(-logits, -1)[..., :4]
    assert start.depths == (0, 1, 2, 3)
    assert start.positions == tuple(range(7))
    np.testing.assert_array_equal(found["top_ids"], order)
    np.testing.assert_allclose(found["top_probabilities"], np.take_along_axis(probabilities, order, -1), rtol=1e-4)
    np.testing.assert_allclose(found["top_logits"], np.take_along_axis(logits, order, -1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["logits"], logits[..., 17], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["probabilities"], probabilities[..., 17], rtol=1e-4)
    np.testing.assert_array_equal(found["ranks"], (logits > logits[..., 17:18]).sum(-1))
    kl = (probabilities[-1] * np.log(probabilities[-1] / probabilities)).sum(-1)
    np.testing.assert_allclose(found["kl"], kl, rtol=1e-3, atol=1e-6)
    assert kl[0].min() > 0.01


async def test_logit_lens_reads_only_what_was_chosen(inference: Inference) -> None:
    """Chosen depths and positions are the rows of the whole lens."""
    _, whole = await gathered(logit_lens(inference, "llama", PROMPT))
    start, some = await gathered(logit_lens(inference, "llama", PROMPT, depths=[1, 3], positions=[0, 4, 6]))
    assert (start.depths, start.positions, start.num_top_tokens) == ((1, 3), (0, 4, 6), 5)
    np.testing.assert_array_equal(some["top_ids"], whole["top_ids"][[1, 3]][:, [0, 4, 6]])
    np.testing.assert_allclose(some["kl"], whole["kl"][[1, 3]][:, [0, 4, 6]], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"depths": [4]}, "depths"),
        ({"depths": [2, 1]}, "depths"),
        ({"positions": [7]}, "positions"),
        ({"num_top_tokens": 21}, "num_top_tokens"),
        ({"target_token_id": 320}, "target_token_id"),
    ],
)
async def test_logit_lens_refuses_what_is_not_there(inference: Inference, asked: dict[str, Any], field: str) -> None:
    """The field that was wrong is named."""
    with pytest.raises(InvalidArgumentError) as caught:
        await anext(logit_lens(inference, "llama", PROMPT, **asked))
    assert caught.value.field == field


async def test_attributed_logits_add_up_to_the_models_own(inference: Inference, own: Any, model_id: str) -> None:
    """At any position the parts' sum is the logit that transformers computes, and so is the logit told beside it."""
    with torch.no_grad():
        logits = own(torch.tensor([IDS])).logits[0].numpy()
    for position in (None, 2):
        found = await attribute_logits(inference, model_id, PROMPT, token_ids=[5, 300], position=position)
        expected = logits[-1 if position is None else position, [5, 300]]
        np.testing.assert_allclose(found.contributions_SN.sum(0), expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found.logits_N, expected, rtol=1e-4, atol=1e-4)
        assert (found.position, len(found.parts)) == (6 if position is None else 2, 8)
        assert np.abs(found.contributions_SN[:-1]).min() > 1e-6


async def test_an_attributed_part_is_what_its_module_wrote(inference: Inference, own: Any, model_id: str) -> None:
    """One MLP's part is the change of the logit when its output is taken away and the final norm's scale held."""
    block = own.transformer.h[1] if model_id == "gpt2" else own.model.layers[1]
    norm = own.transformer.ln_f if model_id == "gpt2" else own.model.norm
    kept: dict[str, torch.Tensor] = {}
    handles = [
        block.mlp.register_forward_hook(lambda module, args, output: kept.update(mlp=output[0, -1])),
        norm.register_forward_hook(lambda module, args, output: kept.update(stream=args[0][0, -1])),
    ]
    with torch.no_grad():
        own(torch.tensor([IDS]))
        for handle in handles:
            handle.remove()

        def logit(stream: torch.Tensor) -> float:
            if model_id == "gpt2":
                scale = (kept["stream"].var(correction=0) + norm.eps).sqrt()
                normed = (stream - stream.mean()) / scale * norm.weight + norm.bias
            else:
                scale = (kept["stream"].square().mean() + norm.variance_epsilon).sqrt()
                normed = stream / scale * norm.weight
            return float(normed @ own.lm_head.weight[9])

        expected = logit(kept["stream"]) - logit(kept["stream"] - kept["mlp"])
    found = await attribute_logits(inference, model_id, PROMPT, token_ids=[9])
    assert found.contributions_SN[found.parts.index("layers.1.mlp_out"), 0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("level", [Level.HEAD, Level.NEURON])
async def test_heads_and_neurons_add_up_to_the_models_logits(
    inference: Inference, own: Any, model_id: str, level: Level
) -> None:
    """However finely it is taken apart, the sum is the logit that transformers computes."""
    with torch.no_grad():
        expected = own(torch.tensor([IDS])).logits[0, -1, [5, 300]].numpy()
    found = await attribute_logits(inference, model_id, PROMPT, token_ids=[5, 300], level=level, num_neurons=7)
    np.testing.assert_allclose(found.contributions_SN.sum(0), expected, rtol=1e-4, atol=1e-4)
    named = [part for part in found.parts if (".heads." if level is Level.HEAD else ".neurons.") in part]
    assert len(named) == (12 if level is Level.HEAD else 7)


@pytest.mark.parametrize("level", [Level.HEAD, Level.NEURON])
async def test_a_head_or_neuron_is_what_its_projection_reads_of_it(
    inference: Inference, own: Any, model_id: str, level: Level
) -> None:
    """Its part is how the layer's own part shrinks when the projection's input loses it, everything else held."""
    layer = 1
    block = own.transformer.h[layer] if model_id == "gpt2" else own.model.layers[layer]
    if level is Level.HEAD:
        down = block.attn.c_proj if model_id == "gpt2" else block.self_attn.o_proj
    else:
        down = block.mlp.c_proj if model_id == "gpt2" else block.mlp.down_proj
    kept: dict[str, torch.Tensor] = {}
    handle = down.register_forward_pre_hook(lambda module, args: kept.update(read=args[0][0, -1]))
    norm = own.transformer.ln_f if model_id == "gpt2" else own.model.norm
    final = norm.register_forward_pre_hook(lambda module, args: kept.update(stream=args[0][0, -1]))
    with torch.no_grad():
        own(torch.tensor([IDS]))
        handle.remove()
        final.remove()
        found = await attribute_logits(inference, model_id, PROMPT, token_ids=[9], level=level, num_neurons=10)
        parts = [
            part for part in found.parts if part.startswith((f"layers.{layer}.heads.", f"layers.{layer}.neurons."))
        ]
        assert parts
        for part in parts:
            index = int(part.split(".")[-1])
            without = kept["read"].clone()
            without[slice(index * 8, index * 8 + 8) if level is Level.HEAD else index] = 0
            written = down(kept["read"][None, None])[0, 0] - down(without[None, None])[0, 0]
            if model_id == "gpt2":
                scale = (kept["stream"].var(correction=0) + norm.eps).sqrt()
                written = written - written.mean()
            else:
                scale = (kept["stream"].square().mean() + norm.variance_epsilon).sqrt()
            expected = float(written / scale * norm.weight @ own.lm_head.weight[9])
            assert found.contributions_SN[found.parts.index(part), 0] == pytest.approx(expected, rel=1e-3, abs=1e-6)


async def test_patterns_are_transformers_own_in_passes_of_any_size(models_dir: Path, own: Any, model_id: str) -> None:
    """Chosen layers, heads and positions are those of transformers, whether one layer fits in a pass or all do."""
    with torch.no_grad():
        patterns = own(torch.tensor([IDS]), output_attentions=True).attentions
    for most in (4 * 4 * 7 * 7, 1 << 30):
        inference = Inference(TransformersBackend(models_dir), max_capture_bytes=most)
        parts = [
            part
            async for part in attention_patterns(
                inference, model_id, PROMPT, layers=[0, 2], heads=[1, 3], positions=[4, 6]
            )
        ]
        inference.close()
        assert isinstance(parts[0], PatternsStart)
        for layer, part in zip((0, 2), parts[1:], strict=True):
            assert not isinstance(part, PatternsStart)
            assert part[0] == f"layers.{layer}.attn.pattern"
            expected = patterns[layer][0].numpy()[np.ix_([1, 3], [4, 6])]
            np.testing.assert_allclose(part[1], expected, rtol=1e-4, atol=1e-6)


async def test_patterns_too_large_for_a_pass_are_refused() -> None:
    """One layer's pattern is the least that a pass holds."""
    inference = Inference(FakeBackend(), max_capture_bytes=100)
    with pytest.raises(ResourceExhaustedError, match="shorter prompt"):
        await anext(attention_patterns(inference, "fake", Prompt(text="abcdefgh")))
    inference.close()


def test_scores_are_one_for_heads_that_do_nothing_else() -> None:
    """Made patterns that follow repetition, look back, or find duplicates score 1 there and nowhere else."""
    num_tokens, positions = 5, 11
    pattern = np.zeros((3, positions, positions), np.float32)
    for at in range(positions):
        pattern[0, at, at - num_tokens + 1 if at > num_tokens else 0] = 1
        pattern[1, at, max(at - 1, 0)] = 1
        pattern[2, at, at - num_tokens if at > num_tokens else 0] = 1
    induction, previous, duplicate = score_pattern(pattern, num_tokens)
    np.testing.assert_allclose(induction, [1, 0, 0])
    np.testing.assert_allclose(previous, [0.1, 1, 0.1])
    np.testing.assert_allclose(duplicate, [0, 0, 1])


async def test_head_scores_are_means_over_transformers_own_patterns(
    inference: Inference, own: Any, model_id: str
) -> None:
    """Entry by entry over the drawn sequences; the same seed draws the same ones, another one others."""
    info = await inference.describe(model_id)
    scores = await score_heads(inference, model_id, num_tokens=6, num_sequences=2, seed=3)
    expected = np.zeros((3, 3, 4))
    for index in range(2):
        ids = repeated_tokens(info, 6, 3, index)
        start = len(ids) - 12
        assert start == (1 if model_id == "llama" else 0)
        assert len(set(ids[start : start + 6])) == 6
        with torch.no_grad():
            patterns = own(torch.tensor([ids]), output_attentions=True).attentions
        for layer in range(3):
            for head in range(4):
                pattern = patterns[layer][0, head].numpy()
                first = {token: at for at, token in reversed(list(enumerate(ids)))}
                repeats = [(at, first[token]) for at, token in enumerate(ids) if first[token] != at]
                expected[0, layer, head] += np.mean([pattern[at, before + 1] for at, before in repeats]) / 2
                expected[1, layer, head] += np.mean([pattern[at, at - 1] for at in range(1, len(ids))]) / 2
                expected[2, layer, head] += np.mean([pattern[at, before] for at, before in repeats]) / 2
    np.testing.assert_allclose(scores.induction_LH, expected[0], rtol=1e-4)
    np.testing.assert_allclose(scores.previous_token_LH, expected[1], rtol=1e-4)
    np.testing.assert_allclose(scores.duplicate_token_LH, expected[2], rtol=1e-4)
    again = await score_heads(inference, model_id, num_tokens=6, num_sequences=2, seed=3)
    np.testing.assert_array_equal(again.induction_LH, scores.induction_LH)
    assert repeated_tokens(info, 6, 4, 0) != repeated_tokens(info, 6, 3, 0)


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"num_tokens": 513}, "num_tokens"),
        ({"num_tokens": 100}, "num_tokens"),
        ({"num_sequences": 65}, "num_sequences"),
    ],
)
async def test_head_scores_refuse_what_the_model_does_not_take(
    inference: Inference, asked: dict[str, int], field: str
) -> None:
    """More tokens than the longest prompt, and more sequences than are allowed, are named."""
    with pytest.raises(InvalidArgumentError) as caught:
        await score_heads(inference, "llama", **asked)
    assert caught.value.field == field


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "neox"])
async def test_other_families_are_taken_apart_too(tmp_path: Path, family: str) -> None:
    """Gemma has offset norms and a cap on logits, GPT-NeoX biases: parts add up and the lens ends right."""
    make_model(tmp_path / family, family)
    own = AutoModelForCausalLM.from_pretrained(
        tmp_path / family, local_files_only=True, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        expected = own(torch.tensor([IDS])).logits[0, -1].numpy()
    inference = Inference(TransformersBackend(tmp_path))
    found = await attribute_logits(inference, family, PROMPT, token_ids=[5, 300])
    _, lens = await gathered(logit_lens(inference, family, PROMPT, depths=[3], positions=[6], num_top_tokens=1))
    total = found.contributions_SN.sum(0)
    capped = np.tanh(total / 5) * 5 if family == "gemma2" else total
    np.testing.assert_allclose(capped, expected[[5, 300]], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.logits_N, expected[[5, 300]], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(lens["top_logits"][0, 0, 0], expected.max(), rtol=1e-3)
    if family != "neox":
        with pytest.raises(FailedPreconditionError, match="by layer"):
            await attribute_logits(inference, family, PROMPT, token_ids=[5], level=Level.HEAD)
    inference.close()
