"""Changes at any component: against hooks on transformers' own modules, and what they must leave alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, make_model
from transformers import AutoModelForCausalLM

from weft_activations.adapters.transformers_backend import TransformersBackend
from weft_activations.core.changing import Change, ChangeKind, Prompt
from weft_activations.core.components import component_at
from weft_activations.core.hooks import expand_hooks
from weft_activations.core.inference import Inference
from weft_activations.core.ports import Freeze, Intervention, InterventionKind
from weft_common.errors import FailedPreconditionError, InvalidArgumentError, ResourceExhaustedError

IDS = [280, 283, 264, 273, 302, 290, 276]
OTHER = [302, 276, 280, 281, 270, 283, 264]
ADD, SET, SCALE = InterventionKind.ADD, InterventionKind.SET, InterventionKind.SCALE


def own(models_dir: Path, family: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(models_dir / family, attn_implementation="eager").eval()


def logits_of(backend: TransformersBackend, family: str, *changes: Intervention) -> Any:
    return backend.forward(family, IDS, ["logits"], changes)["logits"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_component_can_be_set_and_changed(backend: TransformersBackend, family: str) -> None:
    """Its own value set leaves the logits; another one is read back as set, at its position alone, and moves them."""
    info = backend.describe(family)
    clean = backend.forward(family, IDS, list(expand_hooks(info.components, info)))
    rng = np.random.default_rng(0)
    for name, value in clean.items():
        if name in ("logits", "logits_all") or name.startswith("layers.1."):
            continue
        layer, hook = (0, name.removeprefix("layers.0.")) if name.startswith("layers") else (None, name)
        same = logits_of(backend, family, Intervention(layer, hook, SET, value=value))
        np.testing.assert_allclose(same, clean["logits"], atol=1e-5, rtol=1e-5, err_msg=name)
        dim = component_at(name).dims.index("P")
        rows = value.take([6], axis=dim)
        new = np.where(np.isfinite(rows), rows + rng.normal(size=rows.shape).astype(np.float32), rows)
        if hook == "attn.pattern":
            new = np.abs(new)
        found = backend.forward(family, IDS, [name, "logits"], [Intervention(layer, hook, SET, (6,), new)])
        expected = value.copy()
        expected[(slice(None),) * dim + (6,)] = new.take(0, axis=dim)
        np.testing.assert_allclose(found[name], expected, atol=1e-5, rtol=1e-5, err_msg=name)
        assert np.abs(found["logits"] - clean["logits"]).max() > 1e-5, name


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@torch.no_grad()
def test_heads_neurons_and_directions_equal_hooks_on_modules(
    backend: TransformersBackend, models_dir: Path, family: str
) -> None:
    """A head, some neurons and a direction change what the same arithmetic inside the modules changes."""
    rng = np.random.default_rng(1)
    direction = rng.normal(size=32).astype(np.float32)
    direction /= np.linalg.norm(direction)
    changes = [
        Intervention(0, "attn.z", InterventionKind.ABLATE, (2, 5), heads=(1, 3)),
        Intervention(1, "mlp.post", SCALE, (6,), factor=-2.0, neurons=(0, 7)),
        Intervention(1, "resid_pre", InterventionKind.ABLATE, direction=direction),
        Intervention(1, "attn.q", ADD, value=np.full((4, 1, 8), 0.5, np.float32)),
        Intervention(0, "attn.result", SCALE, factor=3.0, heads=(2,)),
    ]
    model = own(models_dir, family)
    layers = model.transformer.h if family == "gpt2" else model.model.layers
    attention = [layer.attn if family == "gpt2" else layer.self_attn for layer in layers]
    out = [each.c_proj if family == "gpt2" else each.o_proj for each in attention]

    def without_heads(module: Any, args: Any) -> Any:
        z = args[0].clone()
        for position in (2, 5):
            z[:, position, 8:16] = z[:, position, 24:32] = 0
        return (z,)

    def scaled_neurons(module: Any, args: Any) -> Any:
        post = args[0].clone()
        post[:, 6, [0, 7]] *= -2
        return (post,)

    def without_direction(module: Any, args: Any) -> Any:
        along = torch.from_numpy(direction)
        return (args[0] - (args[0] @ along)[..., None] * along, *args[1:])

    def more_query(module: Any, args: Any, output: Any) -> Any:
        return torch.cat([output[..., :32] + 0.5, output[..., 32:]], -1)

    def louder_head(module: Any, args: Any, output: Any) -> Any:
        weight = module.weight if family == "gpt2" else module.weight.T
        return output + 2 * args[0][..., 16:24] @ weight[16:24]

    out[0].register_forward_pre_hook(without_heads)
    out[0].register_forward_hook(louder_head)
    (layers[1].mlp.c_proj if family == "gpt2" else layers[1].mlp.down_proj).register_forward_pre_hook(scaled_neurons)
    layers[1].register_forward_pre_hook(without_direction)
    (attention[1].c_attn if family == "gpt2" else attention[1].q_proj).register_forward_hook(more_query)
    expected = model(torch.tensor([IDS])).logits[0, -1].numpy()
    plain = logits_of(backend, family)
    found = logits_of(backend, family, *changes)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for index in range(len(changes)):
        left_out = [change for i, change in enumerate(changes) if i != index]
        assert np.abs(logits_of(backend, family, *left_out) - found).max() > 1e-5
    assert np.abs(found - plain).max() > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_parts_stay_whatever_changes(backend: TransformersBackend, family: str) -> None:
    """Patterns and every scale read as without the change, in every architecture."""
    info = backend.describe(family)
    kept = [
        name
        for name in expand_hooks(info.components, info)
        if name.endswith((".scale", "attn.pattern")) and not name.startswith("layers.0.ln1.")
    ]
    change = Intervention(0, "resid_pre", ADD, value=np.random.default_rng(2).normal(size=32).astype(np.float32))
    clean = backend.forward(family, IDS, kept)
    held = backend.forward(family, IDS, kept, [change], Freeze(attention_patterns=True, norm_scales=True))
    free = backend.forward(family, IDS, kept, [change])
    for name in kept:
        np.testing.assert_allclose(held[name], clean[name], atol=0, err_msg=name)
        assert np.abs(free[name] - clean[name]).max() > 1e-5, name


async def _logits(inference: Inference, *changes: Change, ids: list[int] = IDS, freeze: Freeze | None = None) -> Any:
    prompt = Prompt(token_ids=tuple(ids))
    ran = await inference.run("llama", prompt, changes, freeze or Freeze(), num_top_tokens=1, asked_token_ids=())
    return ran.logits


async def test_patching_everything_gives_the_other_prompts_logits(inference: Inference) -> None:
    """With the whole stream of another prompt, the model says what it says after that prompt."""
    expected = await _logits(inference, ids=OTHER)
    source = Prompt(token_ids=tuple(OTHER))
    for hook in ("embed", "blocks.1.hook_resid_pre", "layers.1.resid_post", "resid_final"):
        found = await _logits(inference, Change(hook, ChangeKind.PATCH, source=source))
        np.testing.assert_allclose(found, expected, atol=1e-5)
    last = Change("layers.1.resid_post", ChangeKind.PATCH, (6,), source=source, source_positions=(2,))
    np.testing.assert_allclose(await _logits(inference, last), await _logits(inference, ids=OTHER[:3]), atol=1e-5)


async def test_means_and_samples_are_of_clean_passes(inference: Inference, backend: TransformersBackend) -> None:
    """A mean is over the prompt's own positions or as given; a sample is rows of the source, drawn by the seed."""
    hook = "layers.0.mlp.post"
    clean = backend.forward("llama", IDS, [hook])[hook]
    mean = clean.mean(0)
    set_mean = Intervention(0, "mlp.post", SET, (2,), mean[None, [5, 9]], neurons=(5, 9))
    expected = logits_of(backend, "llama", set_mean)
    for value in (None, mean[[5, 9]]):
        change = Change(hook, ChangeKind.MEAN, (2,), neurons=(5, 9), value=value)
        np.testing.assert_allclose(await _logits(inference, change), expected, atol=1e-5)
    prompt, source = Prompt(token_ids=tuple(IDS)), Prompt(token_ids=tuple(OTHER[:5]))
    rows = backend.forward("llama", OTHER[:5], [hook])[hook]

    async def drawn(seed: int) -> list[int]:
        change = Change(hook, ChangeKind.RESAMPLE, source=source, seed=seed)
        async with inference.capturing("llama", prompt, [hook], [change], Freeze()) as passed:
            distances = np.abs(passed.captures[hook][:, None] - rows[None]).max(-1)
        assert distances.min(1).max() < 1e-6
        return [int(row) for row in distances.argmin(1)]

    assert await drawn(3) == await drawn(3)
    assert len({tuple(await drawn(seed)) for seed in range(4)}) > 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (Change("layers.0.mlp.gate", ChangeKind.ABLATE), r"no hook.*layers\.\*\.mlp\.pre_linear"),
        (Change("layers.*.mlp_out", ChangeKind.ABLATE), "one component of one layer"),
        (Change("layers.0.mlp_out", ChangeKind.ABLATE, (7,)), "no position 7; there are 7, 0 to 6"),
        (Change("layers.0.mlp_out", ChangeKind.ABLATE, heads=(0,)), "has no heads"),
        (Change("layers.0.attn.k", ChangeKind.ABLATE, heads=(2,)), "no head 2; there are 2"),
        (Change("layers.0.mlp.post", ChangeKind.ABLATE, neurons=(48,)), "no neuron 48"),
        (Change("layers.0.ln1.scale", ChangeKind.ABLATE, neurons=(0,)), "has no neurons"),
        (Change("layers.0.attn.z", ChangeKind.SET, value=np.zeros(9, np.float32)), r"\[9\].*\[8\] or \[7, 8\]"),
        (Change("layers.0.attn.z", ChangeKind.ADD, value=np.zeros((2, 7, 8), np.float32)), r"\[4, 7, 8\]"),
        (Change("embed", ChangeKind.SCALE, factor=float("nan")), "finite"),
        (Change("embed", ChangeKind.ABLATE, direction=np.zeros(32, np.float32)), "not all zero"),
        (Change("embed", ChangeKind.ABLATE, direction=np.ones(31, np.float32)), r"\[31\]; here it has \[32\]"),
        (Change("layers.0.mlp_out", ChangeKind.PATCH), "set source"),
        (Change("layers.0.mlp_out", ChangeKind.PATCH, source=Prompt(token_ids=(1, 2))), "no position 2 in the source"),
        (Change("layers.0.attn.pattern", ChangeKind.RESAMPLE, source=Prompt(token_ids=(1, 2))), "same length"),
        (
            Change("embed", ChangeKind.PATCH, (1, 2), source=Prompt(token_ids=(1, 2)), source_positions=(0,)),
            "1 source positions for 2 positions",
        ),
    ],
)
async def test_changes_that_do_not_fit_are_refused(inference: Inference, change: Change, message: str) -> None:
    """The message names what is wrong and what there is."""
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        await _logits(inference, change)
    assert caught.value.field.startswith("interventions[0]")


async def test_passes_before_the_changed_one_are_bounded(backend: TransformersBackend) -> None:
    """Too many prompts to read, and too much of them, are refused before anything runs."""
    inference = Inference(backend, max_capture_bytes=20_000)
    try:
        prompts = [Prompt(token_ids=(280 + index, 283)) for index in range(9)]
        many = [Change("layers.0.mlp_out", ChangeKind.PATCH, (0,), source=prompt) for prompt in prompts]
        with pytest.raises(ResourceExhaustedError, match="read 9 prompts; one call reads 8"):
            await _logits(inference, *many)
        long = Prompt(token_ids=tuple(IDS * 15))
        big = [Change(f"layers.{layer}.mlp_out", ChangeKind.PATCH, source=long) for layer in (0, 1)]
        with pytest.raises(ResourceExhaustedError, match="would hold 26880 bytes"):
            await _logits(inference, *big)
        await _logits(inference, many[0], big[0])
    finally:
        inference.close()


async def test_nan_is_named_by_its_layer_and_hook(tmp_path: Path) -> None:
    """A weight that is no number is found where it first shows, whatever was asked for."""
    from safetensors.numpy import load_file, save_file

    folder = make_model(tmp_path / "llama", "llama")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 3] = np.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    inference = Inference(TransformersBackend(tmp_path))
    try:
        with pytest.raises(FailedPreconditionError, match=r"NaN from layers\.1\.mlp_out on"):
            await _logits(inference)
    finally:
        inference.close()
