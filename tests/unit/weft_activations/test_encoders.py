"""
Encoders of BERT's kind: every component against transformers' outputs and plain recomputation in float64, changes
against hooks on transformers' own modules, and what an encoder cannot do.

Legend: P positions, H heads, E head width.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_models import ENCODERS, make_encoder

from weft_activations.adapters.transformers_backend import TransformersBackend
from weft_activations.core.analyses.head_scores import repeated_tokens, score_heads
from weft_activations.core.analyses.logit_attribution import attribute_logits
from weft_activations.core.analyses.logit_lens import LensBlock, logit_lens
from weft_activations.core.analyses.patching import sweep_patches
from weft_activations.core.analyses.paths import sweep_paths
from weft_activations.core.analyses.sweeping import Metric, MetricKind
from weft_activations.core.changing import Change, ChangeKind, Prompt
from weft_activations.core.components import component_at
from weft_activations.core.generating import Generation, Sampling
from weft_activations.core.harvest_records import HarvestSpec
from weft_activations.core.hooks import expand_hooks, hook_shape
from weft_activations.core.inference import Inference
from weft_activations.core.kinds import ModelKind, kind_of
from weft_activations.core.planning import HarvestPlanner
from weft_activations.core.ports import Freeze, Intervention, InterventionKind
from weft_common.errors import FailedPreconditionError, InvalidArgumentError
from weft_store.adapters.file import FileObjectStore

IDS = [0, 280, 283, 264, 273, 302, 290, 276]
PROMPT = Prompt(token_ids=tuple(IDS))
LAYERS, HEADS = 3, 4
Captures = dict[str, Any]


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders")
    for family in ENCODERS:
        make_encoder(folder / family, family, num_layers=LAYERS)
    return folder


@pytest.fixture(scope="module")
def backend(models_dir: Path) -> TransformersBackend:
    return TransformersBackend(models_dir)


@pytest.fixture
async def inference(backend: TransformersBackend) -> AsyncIterator[Inference]:
    made = Inference(backend)
    yield made
    made.close()


@pytest.fixture(scope="module", params=ENCODERS)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def own_model(models_dir: Path, family: str) -> Any:
    """transformers' own model, in float64."""
    model_class = getattr(transformers, ENCODERS[family][0].__name__)
    return model_class.from_pretrained(models_dir / family, attn_implementation="eager", dtype=torch.float64).eval()


@pytest.fixture(scope="module")
def own(models_dir: Path, family: str) -> Any:
    return own_model(models_dir, family)


@pytest.fixture(scope="module")
def found(backend: TransformersBackend, family: str) -> Captures:
    """Every component, in float64."""
    info = backend.describe(family)
    captures = backend.forward(family, IDS, list(expand_hooks(info.components, info)))
    return {name: value.astype(np.float64) for name, value in captures.items()}


def close(value: Any, expected: Any, atol: float = 5e-6) -> None:
    expected = expected.detach().numpy() if isinstance(expected, torch.Tensor) else expected
    np.testing.assert_allclose(value, expected, atol=atol, rtol=1e-5)


def linear(module: Any, x: Any) -> Any:
    return x @ module.weight.detach().numpy().T + module.bias.detach().numpy()


def normed(module: Any, x: Any) -> tuple[Any, Any]:
    """Return a norm's scale and output."""
    centred = x - x.mean(-1, keepdims=True)
    scale = np.sqrt((centred**2).mean(-1) + module.eps)
    return scale, centred / scale[..., None] * module.weight.detach().numpy() + module.bias.detach().numpy()


def gelu(x: Any) -> Any:
    return torch.nn.functional.gelu(torch.from_numpy(x)).numpy()


def by_head(x: Any) -> Any:
    return x.reshape(len(IDS), HEADS, 8).transpose(1, 0, 2)


def test_every_component_has_its_shape(backend: TransformersBackend, family: str, found: Captures) -> None:
    """What GetModel lists is what a capture returns; heads and pooled outputs are listed where there are any."""
    info = backend.describe(family)
    for name, value in found.items():
        assert value.shape == hook_shape(name, info, len(IDS)), name
        assert np.isfinite(value).all(), name
    assert len(found) == sum(LAYERS if "*" in pattern else 1 for pattern in info.components)
    has_head = family.endswith("-masked")
    assert {"logits", "logits_all", "mlm.pre", "ln_final.scale"} & set(found) == (
        {"logits", "logits_all", "mlm.pre", "ln_final.scale"} if has_head else set()
    )
    assert ("pooled" in found) != has_head
    assert kind_of(info) is ModelKind.ENCODER
    assert info.max_tokens == 128
    assert info.bos_token_id == 0


@torch.no_grad()
def test_captures_equal_what_transformers_returns(own: Any, found: Captures) -> None:
    """Streams between layers, patterns, logits and pooled outputs are those of transformers itself."""
    expected = own(torch.tensor([IDS]), output_hidden_states=True, output_attentions=True)
    for layer in range(LAYERS):
        close(found[f"layers.{layer}.resid_pre"], expected.hidden_states[layer][0])
        close(found[f"layers.{layer}.ln2.normed"], expected.hidden_states[layer + 1][0])
        close(found[f"layers.{layer}.attn.pattern"], expected.attentions[layer][0])
    close(found["resid_final"], expected.hidden_states[LAYERS][0])
    if "pooled" in found:
        close(found["pooled"], expected.pooler_output[0])
    else:
        close(found["logits_all"], expected.logits[0])
        close(found["logits"], expected.logits[0, -1])


def test_layers_are_recomputed(own: Any, found: Captures) -> None:
    """Each component follows in float64 from the one before and the weights, and a token sees what comes after it."""
    for layer, block in enumerate(own.base_model.encoder.layer):
        at = {name: found[f"layers.{layer}.{name}"] for name in _names(found, layer)}
        attention, first, second = block.attention.self, block.attention.output, block.output
        for name, module in (("q", attention.query), ("k", attention.key), ("v", attention.value)):
            close(at[f"attn.{name}"], by_head(linear(module, at["resid_pre"])))
        scores = at["attn.q"] @ at["attn.k"].transpose(0, 2, 1) / np.sqrt(8)
        close(at["attn.scores"], scores)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        close(at["attn.pattern"], weights / weights.sum(-1, keepdims=True))
        assert at["attn.pattern"][:, 0, 1:].min() > 0
        close(at["attn.z"], at["attn.pattern"] @ at["attn.v"])
        close(at["attn.result"].sum(0) + first.dense.bias.detach().numpy(), at["attn_out"])
        close(at["attn_out"], linear(first.dense, at["attn.z"].transpose(1, 0, 2).reshape(len(IDS), 32)))
        close(at["resid_mid"], at["resid_pre"] + at["attn_out"])
        scale, output = normed(first.LayerNorm, at["resid_mid"])
        close(at["ln1.scale"], scale)
        close(at["ln1.normed"], output)
        close(at["mlp_in"], at["ln1.normed"], atol=0)
        close(at["mlp.pre"], linear(block.intermediate.dense, at["mlp_in"]))
        close(at["mlp.post"], gelu(at["mlp.pre"]))
        close(at["mlp_out"], linear(second.dense, at["mlp.post"]))
        close(at["resid_post"], at["ln1.normed"] + at["mlp_out"])
        scale, output = normed(second.LayerNorm, at["resid_post"])
        close(at["ln2.scale"], scale)
        close(at["ln2.normed"], output)


def _names(found: Captures, layer: int) -> list[str]:
    return [name.split(".", 2)[2] for name in found if name.startswith(f"layers.{layer}.")]


def test_embeddings_and_heads_are_recomputed(own: Any, found: Captures, family: str) -> None:
    """What enters is the norm of three embeddings; what leaves goes through the pooler, or the head's own layer."""
    body = own.base_model
    embeddings = body.embeddings
    first = 2 if family.startswith("roberta") else 0
    close(found["tok_embed"], embeddings.word_embeddings.weight[IDS])
    close(found["pos_embed"], embeddings.position_embeddings.weight[first : first + len(IDS)])
    close(found["type_embed"], embeddings.token_type_embeddings.weight[[0] * len(IDS)])
    scale, output = normed(embeddings.LayerNorm, found["tok_embed"] + found["pos_embed"] + found["type_embed"])
    close(found["ln_embed.scale"], scale)
    close(found["embed"], output)
    if "pooled" in found:
        close(found["pooled"], np.tanh(linear(body.pooler.dense, found["resid_final"][0])))
        return
    transform = own.lm_head if family.startswith("roberta") else own.cls.predictions.transform
    norm = transform.layer_norm if family.startswith("roberta") else transform.LayerNorm
    decoder = own.get_output_embeddings()
    close(found["mlm.pre"], linear(transform.dense, found["resid_final"]))
    close(found["mlm.post"], gelu(found["mlm.pre"]))
    scale, output = normed(norm, found["mlm.post"])
    close(found["ln_final.scale"], scale)
    close(found["ln_final.normed"], output)
    close(found["logits_all"], linear(decoder, found["ln_final.normed"]))


def test_every_component_can_be_set_and_changed(backend: TransformersBackend, family: str, found: Captures) -> None:
    """Its own value set leaves what comes out; another one is read back as set, at its position alone, and moves it."""
    output = "pooled" if "pooled" in found else "logits_all"
    rng = np.random.default_rng(0)
    for name, clean in found.items():
        if name in ("logits", "logits_all", "pooled") or name.startswith(("layers.1.", "layers.2.")):
            continue
        value = clean.astype(np.float32)
        layer, hook = (0, name.removeprefix("layers.0.")) if name.startswith("layers") else (None, name)
        same = Intervention(layer, hook, InterventionKind.SET, value=value)
        close(backend.forward(family, IDS, [output], [same])[output], found[output], atol=2e-5)
        dim = component_at(name).dims.index("P")
        # The first position, which the pooler reads.
        new = value.take([0], axis=dim) + rng.normal(size=value.take([0], axis=dim).shape).astype(np.float32)
        new = np.abs(new) if hook.endswith(("pattern", "scale")) else new
        change = Intervention(layer, hook, InterventionKind.SET, (0,), new)
        again = backend.forward(family, IDS, [name, output], [change])
        expected = value.copy()
        expected[(slice(None),) * dim + (0,)] = new.take(0, axis=dim)
        np.testing.assert_allclose(again[name], expected, atol=1e-5, rtol=1e-5, err_msg=name)
        assert np.abs(again[output] - found[output]).max() > 1e-5, name


@torch.no_grad()
def test_changes_equal_hooks_on_modules(backend: TransformersBackend, models_dir: Path, family: str) -> None:
    """Heads, neurons and a stream changed here are what the same arithmetic inside transformers' modules gives."""
    model = own_model(models_dir, family)
    first, second = model.base_model.encoder.layer[:2]

    def without_head(module: Any, args: Any) -> Any:
        z = args[0].clone()
        z[:, 2, 8:16] = 0
        return (z,)

    def louder_neurons(module: Any, args: Any) -> Any:
        post = args[0].clone()
        post[:, :, [0, 7]] *= -2
        return (post,)

    first.attention.output.dense.register_forward_pre_hook(without_head)
    second.output.dense.register_forward_pre_hook(louder_neurons)
    second.attention.output.LayerNorm.register_forward_hook(lambda module, args, output: output + 0.5)
    changes = [
        Intervention(0, "attn.z", InterventionKind.ABLATE, (2,), heads=(1,)),
        Intervention(1, "mlp.post", InterventionKind.SCALE, factor=-2.0, neurons=(0, 7)),
        Intervention(1, "ln1.normed", InterventionKind.ADD, value=np.float32([0.5])),
    ]
    expected = model(torch.tensor([IDS]), output_hidden_states=True).hidden_states[-1][0]
    plain = backend.forward(family, IDS, ["resid_final"])["resid_final"]
    made = backend.forward(family, IDS, ["resid_final"], changes)["resid_final"]
    close(made, expected, atol=1e-5)
    assert np.abs(made - plain).max() > 0.01


def test_frozen_parts_stay_whatever_changes(backend: TransformersBackend, family: str) -> None:
    """Patterns and every scale read as without the change."""
    info = backend.describe(family)
    kept = [name for name in expand_hooks(info.components, info) if name.endswith((".scale", "attn.pattern"))]
    kept.remove("ln_embed.scale")
    change = Intervention(
        0, "resid_pre", InterventionKind.ADD, value=np.random.default_rng(2).normal(size=32).astype(np.float32)
    )
    clean = backend.forward(family, IDS, kept)
    held = backend.forward(family, IDS, kept, [change], Freeze(attention_patterns=True, norm_scales=True))
    free = backend.forward(family, IDS, kept, [change])
    for name in kept:
        np.testing.assert_allclose(held[name], clean[name], atol=0, err_msg=name)
        assert np.abs(free[name] - clean[name]).max() > 1e-5, name


async def test_prediction_is_of_the_position_asked(
    inference: Inference, models_dir: Path, backend: TransformersBackend
) -> None:
    """A masked token is predicted where it stands; without a position it is the last one."""
    with torch.no_grad():
        expected = own_model(models_dir, "bert-masked")(torch.tensor([IDS])).logits[0]
    for position, row in ((3, 3), (None, len(IDS) - 1)):
        ran = await inference.run(
            "bert-masked", PROMPT, (), Freeze(), num_top_tokens=3, asked_token_ids=(), position=position
        )
        close(ran.logits, expected[row])
        assert ran.top[0].token.token_id == int(expected[row].argmax())
    with pytest.raises(InvalidArgumentError, match="no position 8; the prompt has 8 tokens, 0 to 7"):
        await inference.run("bert-masked", PROMPT, (), Freeze(), num_top_tokens=3, asked_token_ids=(), position=8)


@pytest.mark.parametrize("family", ["bert-masked", "roberta-masked"], indirect=True)
async def test_logit_lens_goes_through_the_whole_head(inference: Inference, own: Any, family: str) -> None:
    """Each depth's stream is read by the head as the last one is."""
    parts = [part async for part in logit_lens(inference, family, PROMPT, target_token_id=9)]
    block = parts[1]
    assert isinstance(block, LensBlock)
    assert block.target is not None
    with torch.no_grad():
        states = own(torch.tensor([IDS]), output_hidden_states=True).hidden_states
        head = own.lm_head if family.startswith("roberta") else own.cls
        close(block.target.logits_NP, np.stack([head(state)[0, :, 9].numpy() for state in states]))
    close(block.kl_NP[-1], np.zeros(len(IDS)))


async def test_head_scores_are_of_attention_both_ways(inference: Inference, own: Any, family: str) -> None:
    """A score is the mean of what transformers' attentions give the places in question."""
    scores = await score_heads(inference, family, num_tokens=10, num_sequences=1)
    tokens = repeated_tokens(scores.info, 10, 0, 0)
    with torch.no_grad():
        attentions = own(torch.tensor([tokens]), output_attentions=True).attentions
    later = torch.arange(1, len(tokens))
    expected = np.stack([attention[0][:, later, later - 1].mean(-1).numpy() for attention in attentions])
    close(scores.previous_token_LH, expected)


async def test_what_is_not_for_an_encoder_is_refused(inference: Inference, backend: TransformersBackend) -> None:
    """Generation, sweeps, attribution, harvests and replaced MLPs name the model's kind; logits want a head."""
    metric = Metric(MetricKind.PROBABILITY, 9)

    async def generate() -> None:
        async for _ in Generation(inference, max_bytes=1 << 20).generate("bert-masked", PROMPT, (), Sampling(2)):
            raise AssertionError("a token came")

    async def sweep(cells: AsyncIterator[Any]) -> None:
        async for _ in cells:
            raise AssertionError("a cell came")

    for refused in (
        generate(),
        sweep(sweep_patches(inference, "bert-masked", clean=PROMPT, corrupted=PROMPT, metric=metric)),
        sweep(sweep_paths(inference, "bert-masked", clean=PROMPT, corrupted=PROMPT, metric=metric, receiver="logits")),
        attribute_logits(inference, "bert-masked", PROMPT, token_ids=[9]),
    ):
        with pytest.raises(FailedPreconditionError, match=r"an encoder \(BertForMaskedLM\), does not predict"):
            await refused
    for headless in (
        inference.run("bert", PROMPT, (), Freeze(), num_top_tokens=3, asked_token_ids=()),
        sweep(logit_lens(inference, "bert", PROMPT)),
    ):
        with pytest.raises(FailedPreconditionError, match="has no head, so there are no logits"):
            await headless
    with pytest.raises(FailedPreconditionError, match="MLPs of BertModel cannot be replaced"):
        backend.passes("bert", [IDS], "mlp_in")
    with pytest.raises(InvalidArgumentError, match="before the logits and what is pooled"):
        await inference.check("bert", PROMPT, [Change("pooled", ChangeKind.ABLATE)])


async def test_harvest_of_an_encoder_is_refused_before_its_corpus_is_read(inference: Inference, tmp_path: Path) -> None:
    """There is no corpus at all, and what is told is the model's kind."""
    spec = HarvestSpec("bert", "d", "none", 100, 0.1, 16, "mlp_in", "mlp_out", "bf16", 0.0, 0.0, 4)
    with pytest.raises(FailedPreconditionError, match=r"a harvest, .* goes over the next token"):
        await HarvestPlanner(FileObjectStore(tmp_path), inference).plan(spec)


def test_pooler_without_weights_is_not_offered(tmp_path: Path) -> None:
    """A checkpoint whose pooler was left out has no `pooled`, in place of one that was drawn at random."""
    folder = make_encoder(tmp_path / "bert", "bert")
    model = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False)
    model.save_pretrained(folder)
    info = TransformersBackend(tmp_path).describe("bert")
    assert "pooled" not in info.components
    with pytest.raises(InvalidArgumentError, match="no hook 'pooled' in BertModel"):
        expand_hooks(["pooled"], info)


def test_both_names_are_understood(backend: TransformersBackend, family: str) -> None:
    """TransformerLens's names lead to the places that it means; one on which its versions disagree leads nowhere."""
    info = backend.describe(family)
    names = expand_hooks(["blocks.2.ln2.hook_in", "blocks.*.attn.hook_pattern", "embed.hook_out", "hook_embed"], info)
    assert names["blocks.2.ln2.hook_in"] == "layers.2.resid_post"
    assert names["blocks.1.attn.hook_pattern"] == "layers.1.attn.pattern"
    assert (names["embed.hook_out"], names["hook_embed"]) == ("tok_embed", "embed")
    with pytest.raises(InvalidArgumentError, match="no hook"):
        expand_hooks(["blocks.0.hook_resid_mid"], info)
