"""Captures, interventions and freezing against transformers' own forward pass and hooks of its modules."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import make_gpt2, make_llama
from transformers import AutoModelForCausalLM

from weft_activations.adapters.transformers_backend import TransformersBackend
from weft_activations.core.calls import current_call, run_call
from weft_activations.core.hooks import expand_hooks
from weft_activations.core.ports import Freeze, Intervention, InterventionKind
from weft_common.errors import CancelledError

IDS = [280, 283, 264, 273, 302, 290, 276]
D_MODEL, NUM_LAYERS = 32, 3


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_llama(folder / "llama")
    make_gpt2(folder / "gpt2")
    return folder


@pytest.fixture(scope="module")
def backend(models_dir: Path) -> TransformersBackend:
    return TransformersBackend(models_dir)


@pytest.fixture(params=["llama", "gpt2"])
def model_id(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def own(models_dir: Path, model_id: str) -> Any:
    """transformers' own model."""
    return AutoModelForCausalLM.from_pretrained(models_dir / model_id, attn_implementation="eager").eval()


def every_hook(backend: TransformersBackend, model_id: str) -> list[str]:
    info = backend.describe(model_id)
    return list(expand_hooks(info.components, info))


def _layers(own: Any) -> Any:
    return own.transformer.h if hasattr(own, "transformer") else own.model.layers


def _norms(own: Any, layer: int) -> tuple[Any, Any]:
    block = _layers(own)[layer]
    names = ("ln_1", "ln_2") if hasattr(block, "ln_1") else ("input_layernorm", "post_attention_layernorm")
    return getattr(block, names[0]), getattr(block, names[1])


def _close(found: Any, expected: Any, atol: float = 2e-6) -> None:
    np.testing.assert_allclose(found, np.asarray(expected), atol=atol, rtol=1e-5)


@torch.no_grad()
def test_capture_equals_what_transformers_returns(backend: TransformersBackend, own: Any, model_id: str) -> None:
    """Residuals, patterns and logits are those of output_hidden_states and output_attentions."""
    found = backend.forward(model_id, IDS, every_hook(backend, model_id))
    expected = own(torch.tensor([IDS]), output_hidden_states=True, output_attentions=True)
    _close(found["logits"], expected.logits[0, -1])
    _close(found["embed"], expected.hidden_states[0][0])
    for layer in range(NUM_LAYERS):
        _close(found[f"layers.{layer}.resid_pre"], expected.hidden_states[layer][0])
        _close(found[f"layers.{layer}.attn.pattern"], expected.attentions[layer][0])
        if layer < NUM_LAYERS - 1:
            _close(found[f"layers.{layer}.resid_post"], expected.hidden_states[layer + 1][0])
    _close(found["resid_final"], found[f"layers.{NUM_LAYERS - 1}.resid_post"], atol=0)


@torch.no_grad()
def test_capture_equals_what_module_hooks_see(backend: TransformersBackend, own: Any, model_id: str) -> None:
    """MLP inputs and outputs, attention outputs and norm scales are those at the modules of a plain forward pass."""
    seen: dict[str, Any] = {}

    def hook(name: str) -> Callable[..., None]:
        def keep(module: Any, inputs: Any, output: Any) -> None:
            seen[name] = (inputs[0][0] if inputs else None, (output[0] if isinstance(output, tuple) else output)[0])

        return keep

    for layer, block in enumerate(_layers(own)):
        block.mlp.register_forward_hook(hook(f"{layer}.mlp"))
        (block.attn if hasattr(block, "attn") else block.self_attn).register_forward_hook(hook(f"{layer}.attn"))
        for number, norm in enumerate(_norms(own, layer), start=1):
            norm.register_forward_hook(hook(f"{layer}.ln{number}"))
    own(torch.tensor([IDS]))
    found = backend.forward(model_id, IDS, every_hook(backend, model_id))
    for layer in range(NUM_LAYERS):
        _close(found[f"layers.{layer}.mlp_in"], seen[f"{layer}.mlp"][0])
        _close(found[f"layers.{layer}.mlp_out"], seen[f"{layer}.mlp"][1])
        _close(found[f"layers.{layer}.attn_out"], seen[f"{layer}.attn"][1])
        _close(found[f"layers.{layer}.resid_mid"], seen[f"{layer}.ln2"][0])
        for number in (1, 2):
            x = np.asarray(seen[f"{layer}.ln{number}"][0], dtype=np.float64)
            centred = x - x.mean(1, keepdims=True) if model_id == "gpt2" else x
            eps = 1e-5 if model_id == "gpt2" else 1e-6
            _close(found[f"layers.{layer}.ln{number}.scale"], np.sqrt((centred**2).mean(1) + eps))
        total = found[f"layers.{layer}.resid_mid"] + found[f"layers.{layer}.mlp_out"]
        _close(found[f"layers.{layer}.resid_post"], total, atol=0)
        total = found[f"layers.{layer}.resid_pre"] + found[f"layers.{layer}.attn_out"]
        _close(found[f"layers.{layer}.resid_mid"], total, atol=0)


def test_streams_of_sequences_equal_single_captures(backend: TransformersBackend, model_id: str) -> None:
    """Sequences of several lengths give, one after the other, what a capture of each gives without its first token."""
    sequences = [np.array(ids) for ids in (IDS, IDS[:3], IDS[::-1], IDS[1:4])]
    num_tokens = sum(len(ids) - 1 for ids in sequences)
    for hooks in (("mlp_in", "mlp_out"), ("resid_mid", "mlp_out"), ("mlp_in", "mlp_out", "resid_mid")):
        into = {hook: np.full((NUM_LAYERS, num_tokens, D_MODEL), np.nan, np.float32) for hook in hooks}
        assert backend.streams(model_id, [sequences[:3], sequences[3:]], into) == 2
        start = 0
        for ids in sequences:
            rows = slice(start, start + len(ids) - 1)
            start = rows.stop
            single = backend.forward(model_id, ids.tolist(), every_hook(backend, model_id))
            for hook in hooks:
                for layer in range(NUM_LAYERS):
                    _close(into[hook][layer, rows], single[f"layers.{layer}.{hook}"][1:])


@pytest.mark.parametrize("hook", ["mlp_out", "resid_pre", "resid_mid", "resid_post"])
@pytest.mark.parametrize("kind", list(InterventionKind))
@torch.no_grad()
def test_intervention_equals_a_hook_on_the_module(
    backend: TransformersBackend, own: Any, model_id: str, hook: str, kind: InterventionKind
) -> None:
    """Every kind at every place changes the logits as the same change does inside transformers' own modules."""
    positions, layer = (1, 4), 1
    value = np.random.default_rng(3).normal(size=(2, D_MODEL)).astype(np.float32)
    change = Intervention(layer, hook, kind, positions, value, factor=-1.5)

    def changed(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        for row, position in enumerate(positions):
            if kind is InterventionKind.ADD:
                x[:, position] += torch.tensor(value[row])
            elif kind is InterventionKind.SET:
                x[:, position] = torch.tensor(value[row])
            else:
                x[:, position] *= -1.5 if kind is InterventionKind.SCALE else 0.0
        return x

    block = _layers(own)[layer]
    if hook == "resid_pre":
        block.register_forward_pre_hook(lambda module, inputs: (changed(inputs[0]), *inputs[1:]))
    elif hook == "resid_post":
        block.register_forward_hook(lambda module, inputs, output: changed(output))
    elif hook == "mlp_out":
        block.mlp.register_forward_hook(lambda module, inputs, output: changed(output))
    else:
        # The block adds attention's output to its own input: what must be added is the change of that sum.
        entered: list[torch.Tensor] = []
        block.register_forward_pre_hook(lambda module, inputs: entered.append(inputs[0]))
        attention = block.attn if hasattr(block, "attn") else block.self_attn
        attention.register_forward_hook(
            lambda module, inputs, output: (changed(entered[0] + output[0]) - entered[0], *output[1:])
        )
    plain = backend.forward(model_id, IDS, ["logits"])["logits"]
    found = backend.forward(model_id, IDS, ["logits"], [change])["logits"]
    _close(found, own(torch.tensor([IDS])).logits[0, -1], atol=1e-5)
    assert np.abs(found - plain).max() > 1e-3


def test_logits_are_affine_in_an_add_when_everything_is_frozen(backend: TransformersBackend, model_id: str) -> None:
    """With patterns, scales and MLP outputs held, k times the addition moves the logits k times as far."""
    value = np.random.default_rng(0).normal(size=D_MODEL).astype(np.float32)
    plain = backend.forward(model_id, IDS, ["logits"])["logits"]

    def moved(factor: float, freeze: Freeze) -> Any:
        change = Intervention(0, "mlp_out", InterventionKind.ADD, (2,), value * np.float32(factor))
        return backend.forward(model_id, IDS, ["logits"], [change], freeze)["logits"].astype(np.float64) - plain

    everything = Freeze(attention_patterns=True, norm_scales=True, mlp_outputs=True)
    once = moved(1, everything)
    assert np.abs(once).max() > 1e-3
    for factor in (-2, 3, 10):
        np.testing.assert_allclose(moved(factor, everything), factor * once, atol=2e-5 * abs(factor))
    for partly in (Freeze(True, True, False), Freeze(True, False, True), Freeze(False, True, True)):
        assert np.abs(moved(10, partly) - 10 * moved(1, partly)).max() > 1e-3


def test_frozen_parts_keep_their_clean_values(backend: TransformersBackend, model_id: str) -> None:
    """What is held reads as without the intervention; the addition at a held MLP output lies on top of it."""
    hooks = ["layers.2.attn.pattern", "layers.2.ln1.scale", "ln_final.scale", "layers.1.mlp_out", "layers.2.mlp_out"]
    clean = backend.forward(model_id, IDS, hooks)
    value = np.random.default_rng(1).normal(size=D_MODEL).astype(np.float32)
    change = Intervention(1, "mlp_out", InterventionKind.ADD, (), value)
    held = backend.forward(model_id, IDS, hooks, [change], Freeze(True, True, True))
    free = backend.forward(model_id, IDS, hooks, [change])
    for hook in hooks:
        expected = clean[hook] + value if hook == "layers.1.mlp_out" else clean[hook]
        _close(held[hook], expected, atol=0)
        if hook != "layers.1.mlp_out":
            assert np.abs(free[hook] - clean[hook]).max() > 1e-4


def test_captures_do_not_depend_on_the_kernel(backend: TransformersBackend, model_id: str) -> None:
    """Asking for a pattern, which turns eager attention on, leaves every other capture as it was."""
    fused = backend.forward(model_id, IDS, ["logits"])["logits"]
    eager = backend.forward(model_id, IDS, ["logits", "layers.0.attn.pattern"])["logits"]
    _close(eager, fused)


async def test_cancelled_pass_ends_at_the_next_component_it_touches(backend: TransformersBackend) -> None:
    """Nobody waits for the rest, so nothing more is kept, and the model is as it was."""

    def work() -> None:
        current_call().cancel()
        backend.forward("llama", IDS, ["layers.1.mlp_out"])

    with ThreadPoolExecutor(1) as threads:
        with pytest.raises(CancelledError, match="cancelled before it was through"):
            await run_call(threads, work)
        found = await run_call(threads, lambda: backend.forward("llama", IDS, ["layers.1.mlp_out"]))
    assert found["layers.1.mlp_out"].shape == (len(IDS), D_MODEL)
