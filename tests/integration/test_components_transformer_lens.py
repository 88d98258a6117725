"""
Every component against TransformerLens's `run_with_cache`: small random models of nine forms, and SmolLM2.

Legend: P positions, H heads, E head width.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lens_runs import captured, from_lens, lens_cache
from tiny_models import FAMILIES, make_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from weft_activations.core.components import component_at

pytestmark = [pytest.mark.real, pytest.mark.filterwarnings("ignore")]
MODELS = Path(os.environ.get("WEFT_TEST_MODELS_DIR", Path(__file__).resolve().parents[2] / ".weft" / "models"))
SMOLLM2 = "smollm2-135m-instruct"
IDS = [280, 283, 264, 273, 302, 290, 276]
# What folding, centring and moving biases leaves as it is, up to the mean that centring takes away.
UNTOUCHED = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "attn.scores", "attn.pattern", "mlp.post")


def rotated(lens: dict[str, Any], layer: int, name: str) -> Any:
    """Rotate TransformerLens's own queries or keys [P, H, E] by its own angles, of as many dims as these have."""
    at = f"blocks.{layer}.attn.hook_"
    plain, cos, sin = lens[at + name], lens[at + "cos"][:, None], lens[at + "sin"][:, None]
    size = cos.shape[-1]
    turned = np.concatenate([-plain[..., size // 2 : size], plain[..., : size // 2]], axis=-1)
    return np.concatenate([plain[..., :size] * cos + turned * sin, plain[..., size:]], axis=-1)


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / request.param, request.param)


def test_components_equal_transformer_lens(folder: Path) -> None:
    """Every component that both name is the same to 1e-5, on weights as they are."""
    lens, (found, names) = lens_cache(folder, AutoModelForCausalLM, IDS, processed=False), captured(folder, IDS)
    compared = [name for name in found if names[name] in lens]
    for name in compared:
        np.testing.assert_allclose(found[name], from_lens(name, lens[names[name]]), atol=1e-5, rtol=1e-5, err_msg=name)
    missing = {component_at(name).name for name in found} - {component_at(name).name for name in compared}
    # TransformerLens splits results by head only on request, has no last position by itself, no hook behind a soft cap,
    # and none behind the rotation where queries, keys and values are one product.
    unnamed = {"attn.result", "logits", "embed"}
    if "logits_uncapped" in found:
        unnamed.add("logits_all")
    if folder.name.startswith("neox"):
        unnamed |= {"attn.q_rot", "attn.k_rot"}
    assert missing <= unnamed, missing
    np.testing.assert_allclose(found["logits_all"], lens["logits"], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(found["logits"], lens["logits"][-1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("folder", ["neox", "neox-serial"], indirect=True)
def test_rotations_equal_those_of_transformer_lens(folder: Path) -> None:
    """Where TransformerLens shows queries, keys and angles but nothing rotated, its own put together are ours."""
    lens, (found, _) = lens_cache(folder, AutoModelForCausalLM, IDS, processed=False), captured(folder, IDS)
    for layer in range(3):
        for name in "qk":
            ours, theirs = found[f"layers.{layer}.attn.{name}_rot"], rotated(lens, layer, name).transpose(1, 0, 2)
            np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)
            assert np.abs(ours - found[f"layers.{layer}.attn.{name}"]).max() > 0.01


def test_processed_weights_predict_the_same(folder: Path) -> None:
    """With its weight processing, what that leaves alone is the same, and the residuals but for their mean."""
    lens, (found, names) = lens_cache(folder, AutoModelForCausalLM, IDS, processed=True), captured(folder, IDS)
    for name in found:
        if component_at(name).name in UNTOUCHED:
            ours, theirs = found[name].astype(np.float64), from_lens(name, lens[names[name]])
            if component_at(name).dims == "PD":
                ours, theirs = (x - x.mean(-1, keepdims=True) for x in (ours, theirs))
            np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5, err_msg=name)
    ours, theirs = (
        torch.from_numpy(np.asarray(x, dtype=np.float64)).log_softmax(-1) for x in (found["logits_all"], lens["logits"])
    )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_smollm2_equals_transformer_lens() -> None:
    """On the real model every component agrees to float32's rounding over 30 layers."""
    folder = MODELS / SMOLLM2
    ids = AutoTokenizer.from_pretrained(folder).encode("The capital of France is Paris, and that of Italy is")
    lens, (found, names) = lens_cache(folder, AutoModelForCausalLM, ids, processed=False), captured(folder, ids)
    for name in found:
        if names[name] in lens:
            theirs = from_lens(name, lens[names[name]])
            finite = np.isfinite(theirs)
            np.testing.assert_array_equal(np.isfinite(found[name]), finite)
            largest = np.abs(theirs[finite]).max()
            np.testing.assert_allclose(found[name][finite], theirs[finite], atol=2e-5 * max(largest, 1.0), err_msg=name)
