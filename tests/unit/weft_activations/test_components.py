"""
Every component of every decoder architecture, against transformers' own outputs and plain recomputation in float64.

Legend: P positions, H query heads, K key and value heads, E head width.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, make_model
from transformers import AutoModelForCausalLM

from weft_activations.adapters.transformers_backend import TransformersBackend
from weft_activations.core.components import component_at
from weft_activations.core.hooks import expand_hooks, hook_shape

IDS = [280, 283, 264, 273, 302, 290, 276]
LAYERS, HEADS = 3, 4
Captures = dict[str, Any]


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> TransformersBackend:
    folder = tmp_path_factory.mktemp("models")
    for family in FAMILIES:
        make_model(folder / family, family)
    return TransformersBackend(folder)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def own(backend: TransformersBackend, family: str) -> Any:
    """transformers' own model."""
    folder = backend._models_dir / family
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def found(backend: TransformersBackend, family: str) -> Captures:
    """Every component, in float64."""
    info = backend.describe(family)
    captures = backend.forward(family, IDS, list(expand_hooks(info.components, info)))
    return {name: value.astype(np.float64) for name, value in captures.items()}


def close(value: Any, expected: Any, atol: float = 5e-6) -> None:
    np.testing.assert_allclose(value, np.asarray(expected, dtype=np.float64), atol=atol, rtol=1e-5)


def weight(module: Any) -> Any:
    """Return a projection's weight as [in, out], in float64."""
    array = module.weight.detach().double().numpy()
    return array.T if isinstance(module, torch.nn.Linear) else array


def bias(module: Any) -> Any:
    return 0.0 if module.bias is None else module.bias.detach().double().numpy()


def blocks(own: Any) -> Any:
    body = own.base_model
    return body.h if hasattr(body, "h") else body.layers


def test_every_component_has_its_shape(backend: TransformersBackend, family: str, found: Captures) -> None:
    """What GetModel lists is what a capture returns, in the shapes that are reckoned before the pass."""
    info = backend.describe(family)
    for name, value in found.items():
        assert value.shape == hook_shape(name, info, len(IDS)), name
        assert not np.isnan(value).any(), name
    assert len(found) == sum(LAYERS if "*" in pattern else 1 for pattern in info.components)


@torch.no_grad()
def test_captures_equal_what_transformers_returns(own: Any, found: Captures) -> None:
    """Residuals, patterns and logits are those of output_hidden_states and output_attentions."""
    expected = own(torch.tensor([IDS]), output_hidden_states=True, output_attentions=True)
    close(found["logits_all"], expected.logits[0])
    close(found["logits"], expected.logits[0, -1])
    close(found["embed"], expected.hidden_states[0][0])
    for layer in range(LAYERS):
        close(found[f"layers.{layer}.resid_pre"], expected.hidden_states[layer][0])
        close(found[f"layers.{layer}.attn.pattern"], expected.attentions[layer][0])
    close(found["ln_final.normed"], expected.hidden_states[LAYERS][0])
    if "pos_embed" in found:
        close(found["tok_embed"] + found["pos_embed"], found["embed"])


def test_residual_stream_adds_up(found: Captures) -> None:
    """Each residual is the one before and what was added."""
    for layer in range(LAYERS):
        at = f"layers.{layer}."
        after = found[at + "resid_pre"] + found[at + "attn_out"]
        if at + "resid_mid" in found:
            close(found[at + "resid_mid"], after)
        close(found[at + "resid_post"], after + found[at + "mlp_out"])
        following = "resid_final" if layer == LAYERS - 1 else f"layers.{layer + 1}.resid_pre"
        close(found[following], found[at + "resid_post"], atol=0)


def normed(x: Any, scale: Any, norm: Any, family: str) -> tuple[Any, Any]:
    """Return the scale and the output of a norm, from its input."""
    array = norm.weight.detach().double().numpy() + (1.0 if family.startswith("gemma") else 0.0)
    if isinstance(norm, torch.nn.LayerNorm):
        x = x - x.mean(-1, keepdims=True)
    own_scale = np.sqrt((x**2).mean(-1) + (norm.eps if hasattr(norm, "eps") else norm.variance_epsilon))
    return own_scale, x / scale[..., None] * array + (bias(norm) if isinstance(norm, torch.nn.LayerNorm) else 0.0)


def test_norms_are_recomputed(own: Any, found: Captures, family: str) -> None:
    """Scales are what a norm divides by, and what follows from them is its output."""
    for layer, block in enumerate(blocks(own)):
        at = f"layers.{layer}."
        first = getattr(block, "ln_1", None) or block.input_layernorm
        second = getattr(block, "ln_2", None) or block.post_attention_layernorm
        if family.startswith("gemma"):
            second = block.pre_feedforward_layernorm
        before_second = found.get(at + "resid_mid", found[at + "resid_pre"])
        for name, x, norm in (("ln1", found[at + "resid_pre"], first), ("ln2", before_second, second)):
            scale, output = normed(x, found[f"{at}{name}.scale"], norm, family)
            close(found[f"{at}{name}.scale"], scale)
            close(found[f"{at}{name}.normed"], output)
        close(found[at + "mlp_in"], found[at + "ln2.normed"], atol=0)
    body = own.base_model
    final = getattr(body, "ln_f", None) or getattr(body, "final_layer_norm", None) or body.norm
    scale, output = normed(found["resid_final"], found["ln_final.scale"], final, family)
    close(found["ln_final.scale"], scale)
    close(found["ln_final.normed"], output)
    logits = found["ln_final.normed"] @ weight(own.get_output_embeddings())
    cap = getattr(own.config, "final_logit_softcapping", None)
    close(found["logits_all"], logits if cap is None else np.tanh(logits / cap) * cap)
    assert ("logits_uncapped" in found) == (cap is not None)
    close(found.get("logits_uncapped", logits), logits)


def projected(block: Any, x: Any, family: str) -> dict[str, Any]:
    """Return q, k and v as [H, P, E] from the norm's output and the weights."""
    if family == "gpt2":
        fused = x @ weight(block.attn.c_attn) + bias(block.attn.c_attn)
        parts = {name: fused[:, 32 * i : 32 * (i + 1)] for i, name in enumerate("qkv")}
    elif family.startswith("neox"):
        module = block.attention.query_key_value
        fused = (x @ weight(module) + bias(module)).reshape(len(IDS), HEADS, 3, 8)
        parts = {name: fused[:, :, i].reshape(len(IDS), 32) for i, name in enumerate("qkv")}
    else:
        modules = {name: getattr(block.self_attn, f"{name}_proj") for name in "qkv"}
        parts = {name: x @ weight(module) + bias(module) for name, module in modules.items()}
    return {name: part.reshape(len(IDS), -1, 8).transpose(1, 0, 2) for name, part in parts.items()}


def test_attention_is_recomputed(own: Any, found: Captures, family: str) -> None:
    """Queries, keys and values follow from the weights, scores and patterns from them, and so on to what is added."""
    for layer, block in enumerate(blocks(own)):
        at = f"layers.{layer}."
        for name, expected in projected(block, found[at + "ln1.normed"], family).items():
            close(found[f"{at}attn.{name}"], expected)
        q = found.get(at + "attn.q_rot", found[at + "attn.q"])
        k, v = found.get(at + "attn.k_rot", found[at + "attn.k"]), found[at + "attn.v"]
        k, v = (np.repeat(array, HEADS // array.shape[0], axis=0) for array in (k, v))
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(8)
        cap = getattr(own.config, "attn_logit_softcapping", None)
        if cap is not None:
            scores = np.tanh(scores / cap) * cap
        distance = np.subtract.outer(np.arange(len(IDS)), np.arange(len(IDS)))
        kinds = getattr(own.config, "layer_types", None)
        is_local = family == "mistral" or (kinds is not None and kinds[layer] == "sliding_attention")
        hidden = (distance < 0) | (distance >= own.config.sliding_window) if is_local else distance < 0
        scores = np.where(hidden, -np.inf, scores)
        close(found[at + "attn.scores"], scores)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        close(found[at + "attn.pattern"], weights / weights.sum(-1, keepdims=True))
        close(found[at + "attn.z"], found[at + "attn.pattern"] @ v)
        attention = getattr(block, "attn", None) or getattr(block, "attention", None) or block.self_attn
        output = next(m for n in ("c_proj", "dense", "o_proj") if (m := getattr(attention, n, None)) is not None)
        shares = found[at + "attn.z"] @ weight(output).reshape(HEADS, 8, 32)
        close(found[at + "attn.result"], shares)
        total = found[at + "attn.result"].sum(0) + bias(output)
        if family.startswith("gemma"):
            norm = block.post_attention_layernorm
            scale, total = normed(total, found[at + "ln1_post.scale"], norm, family)
            close(found[at + "ln1_post.scale"], scale)
        close(found[at + "attn_out"], total)


def test_rotations_keep_lengths_and_leave_the_first_position(found: Captures, family: str) -> None:
    """Position 0 is not rotated, later ones are, and no rotation changes a vector's length."""
    if "layers.0.attn.q_rot" not in found or family in ("qwen3", "gemma3"):
        pytest.skip("no rotation, or a norm of each head before it")
    for name in ("q", "k"):
        plain, rotated = found[f"layers.1.attn.{name}"], found[f"layers.1.attn.{name}_rot"]
        close(rotated[:, 0], plain[:, 0])
        close(np.linalg.norm(rotated, axis=-1), np.linalg.norm(plain, axis=-1))
        assert np.abs(rotated[:, 1:] - plain[:, 1:]).max() > 0.01


def gelu(x: Any) -> Any:
    return torch.nn.functional.gelu(torch.from_numpy(x)).numpy()


def gelu_tanh(x: Any) -> Any:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def silu(x: Any) -> Any:
    return x / (1 + np.exp(-x))


def test_mlp_is_recomputed(own: Any, found: Captures, family: str) -> None:
    """Pre-activations follow from the input, post-activations from them, and the output from those."""
    act: Callable[[Any], Any] = {"gpt2": gelu_tanh, "gemma2": gelu_tanh, "gemma3": gelu_tanh}.get(
        family, gelu if family.startswith("neox") else silu
    )
    for layer, block in enumerate(blocks(own)):
        at, mlp = f"layers.{layer}.", block.mlp
        first = next(m for n in ("c_fc", "dense_h_to_4h", "gate_proj") if (m := getattr(mlp, n, None)) is not None)
        last = next(m for n in ("c_proj", "dense_4h_to_h", "down_proj") if (m := getattr(mlp, n, None)) is not None)
        close(found[at + "mlp.pre"], found[at + "mlp_in"] @ weight(first) + bias(first))
        post = act(found[at + "mlp.pre"])
        if hasattr(mlp, "up_proj"):
            close(found[at + "mlp.pre_linear"], found[at + "mlp_in"] @ weight(mlp.up_proj))
            post = post * found[at + "mlp.pre_linear"]
        close(found[at + "mlp.post"], post)
        output = found[at + "mlp.post"] @ weight(last) + bias(last)
        if family.startswith("gemma"):
            norm = block.post_feedforward_layernorm
            scale, output = normed(output, found[at + "ln2_post.scale"], norm, family)
            close(found[at + "ln2_post.scale"], scale)
        close(found[at + "mlp_out"], output)


def test_captures_do_not_depend_on_what_else_is_asked(
    backend: TransformersBackend, family: str, found: Captures
) -> None:
    """One hook by itself, with or without open attention, gives what it gives among all."""
    for name in ("logits", "layers.1.mlp.post", "layers.2.attn.z", "layers.1.attn.pattern"):
        close(backend.forward(family, IDS, [name])[name], found[name])


def test_streams_of_a_harvest_equal_captures(backend: TransformersBackend, family: str, found: Captures) -> None:
    """What a harvest keeps of a sequence is what a capture of it shows, without the first token."""
    into = {hook: np.full((LAYERS, 6, 32), np.nan, np.float32) for hook in ("mlp_in", "mlp_out")}
    backend.streams(family, [[np.array(IDS)]], into)
    for hook, rows in into.items():
        for layer in range(LAYERS):
            close(rows[layer], found[f"layers.{layer}.{hook}"][1:])


def test_both_names_are_understood(backend: TransformersBackend, family: str) -> None:
    """TransformerLens's name of a component leads to the same component, and answers keep the name that was asked."""
    info = backend.describe(family)
    asked = ["blocks.2.hook_resid_post", "blocks.*.attn.hook_pattern", "hook_embed"]
    names = expand_hooks(asked, info)
    assert names["blocks.2.hook_resid_post"] == "layers.2.resid_post"
    assert [names[f"blocks.{layer}.attn.hook_pattern"] for layer in range(LAYERS)] == [
        f"layers.{layer}.attn.pattern" for layer in range(LAYERS)
    ]
    assert names["hook_embed"] == ("tok_embed" if family == "gpt2" else "embed")
    for pattern in info.components:
        assert set(component_at(pattern).dims) <= set("PDHKEMV")
