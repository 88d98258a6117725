"""The real model: what it predicts, and that captures are transformers' own."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from weft_activations.adapters.transformers_backend import TransformersBackend
from weft_activations.core.ports import Freeze, Intervention, InterventionKind

pytestmark = pytest.mark.real
MODEL = "smollm2-135m-instruct"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def models_dir() -> Path:
    return Path(os.environ.get("WEFT_TEST_MODELS_DIR", ROOT / ".weft" / "models"))


@pytest.fixture(scope="module")
def backend(models_dir: Path) -> TransformersBackend:
    return TransformersBackend(models_dir)


def test_capital_of_france_is_paris(backend: TransformersBackend) -> None:
    """The model that was made from the package's file knows its geography, and splits digits as its makers did."""
    ids = backend.tokenize(MODEL, "The capital of France is")
    logits = backend.forward(MODEL, ids, ["logits"])["logits"]
    assert backend.token_pieces(MODEL, [int(logits.argmax())]) == [b" Paris"]
    assert backend.token_pieces(MODEL, backend.tokenize(MODEL, "In 2024")) == [b"In", b" ", b"2", b"0", b"2", b"4"]
    pieces = backend.token_pieces(MODEL, backend.tokenize(MODEL, " 東京"))
    assert len(pieces) > 2
    assert b"".join(pieces).decode() == " 東京"
    assert backend.describe(MODEL).bos_token_id is None


@torch.no_grad()
def test_captures_of_the_real_model_are_its_own(backend: TransformersBackend, models_dir: Path) -> None:
    """Residuals of every layer are those of transformers in float64, to float32's rounding through thirty layers."""
    ids = backend.tokenize(MODEL, "Interpretability asks which features of a model write to which others.")
    hooks = [f"layers.{layer}.resid_pre" for layer in range(30)]
    found = backend.forward(MODEL, ids, [*hooks, "logits"])
    exact = AutoModelForCausalLM.from_pretrained(models_dir / MODEL, dtype=torch.float64)
    expected = exact(torch.tensor([ids]), output_hidden_states=True)
    for layer, hook in enumerate(hooks):
        right = expected.hidden_states[layer][0].numpy()
        assert np.linalg.norm(found[hook] - right) <= 1e-5 * np.linalg.norm(right)
    np.testing.assert_allclose(found["logits"], expected.logits[0, -1].numpy(), atol=2e-3)


def test_real_model_is_affine_when_everything_is_frozen(backend: TransformersBackend) -> None:
    """Twice the addition moves every logit twice as far, to float32's rounding."""
    ids = backend.tokenize(MODEL, "The capital of France is")
    plain = backend.forward(MODEL, ids, ["logits"])["logits"].astype(np.float64)
    value = np.random.default_rng(0).normal(size=576).astype(np.float32)

    def moved(factor: float) -> np.ndarray:
        change = Intervention(10, "mlp_out", InterventionKind.ADD, (3,), value * np.float32(factor))
        freeze = Freeze(attention_patterns=True, norm_scales=True, mlp_outputs=True)
        return backend.forward(MODEL, ids, ["logits"], [change], freeze)["logits"] - plain

    once, thrice = moved(10.0), moved(30.0)
    assert np.linalg.norm(thrice - 3 * once) <= 1e-3 * np.linalg.norm(thrice)
