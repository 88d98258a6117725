"""What the backend says of models, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_models import make_gpt2, make_llama
from transformers import MistralConfig, MistralForCausalLM

from weft_activations.adapters.model_folder import model_revision
from weft_activations.adapters.transformers_backend import TransformersBackend
from weft_common.errors import FailedPreconditionError, NotFoundError


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    make_llama(tmp_path / "llama", add_bos=True)
    make_gpt2(tmp_path / "gpt2")
    return tmp_path


def test_describe_reads_the_configuration(models_dir: Path) -> None:
    """Sizes come from config.json, and the start token from what the tokenizer really adds."""
    backend = TransformersBackend(models_dir, max_prompt_tokens=50)
    assert backend.model_ids() == ["gpt2", "llama"]
    llama, gpt2 = backend.describe("llama"), backend.describe("gpt2")
    assert (llama.architecture, llama.num_layers, llama.d_model) == ("LlamaForCausalLM", 3, 32)
    assert (llama.num_heads, llama.num_kv_heads, llama.max_tokens) == (4, 2, 50)
    assert (llama.bos_token_id, gpt2.bos_token_id) == (0, None)
    assert gpt2.num_kv_heads == 4
    assert backend.tokenize("llama", "is") == [0, *backend.tokenize("llama", "is", special_tokens=False)]


def test_revision_changes_with_weights_and_tokenizer_alone(models_dir: Path) -> None:
    """One flipped byte of weights gives another revision; a README gives the same one."""
    folder = models_dir / "llama"
    before = model_revision(folder)
    (folder / "README.md").write_text("words")
    assert model_revision(folder) == before
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    changed = model_revision(folder)
    assert changed != before
    (folder / "tokenizer_config.json").write_text("{}")
    assert model_revision(folder) not in (before, changed)


def test_describe_notices_a_changed_folder(models_dir: Path) -> None:
    """The revision is worked out again when a file changes under a running service."""
    backend = TransformersBackend(models_dir)
    before = backend.describe("llama").revision
    config = models_dir / "llama" / "config.json"
    config.write_text(config.read_text() + " ")
    assert backend.describe("llama").revision != before


def test_unknown_model_is_not_found_and_names_those_there_are(models_dir: Path) -> None:
    """The message lists what can be asked for, whatever the id looks like."""
    backend = TransformersBackend(models_dir)
    for model_id in ("nope", "../llama", ""):
        with pytest.raises(NotFoundError, match="gpt2, llama"):
            backend.describe(model_id)
    with pytest.raises(NotFoundError, match="none"):
        TransformersBackend(models_dir / "missing").describe("llama")


def test_other_architecture_is_refused_with_those_that_work(models_dir: Path) -> None:
    """A model of another shape is never run as if it were one of these."""
    config = models_dir / "llama" / "config.json"
    document = json.loads(config.read_text()) | {"architectures": ["MambaForCausalLM"]}
    config.write_text(json.dumps(document))
    with pytest.raises(FailedPreconditionError, match=r"MambaForCausalLM.*GPT2LMHeadModel"):
        TransformersBackend(models_dir).describe("llama")


def test_damaged_weights_are_refused(models_dir: Path) -> None:
    """A cut-off weights file says which model cannot be loaded."""
    weights = models_dir / "llama" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(FailedPreconditionError, match="weights of the model 'llama'"):
        TransformersBackend(models_dir).forward("llama", [1, 2], ["logits"])


def test_sliding_window_is_kept(tmp_path: Path) -> None:
    """A Mistral with a window gives transformers' own logits on a prompt longer than the window, with either kernel."""
    import torch

    folder = make_llama(tmp_path / "mistral", num_layers=2)
    config = MistralConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        sliding_window=4,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = MistralForCausalLM(config).eval()
    model.save_pretrained(folder)
    backend = TransformersBackend(tmp_path)
    ids = list(range(20, 32))
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0, -1].numpy()
    for hooks in (["logits"], ["logits", "layers.0.attn.pattern"]):
        np.testing.assert_allclose(backend.forward("mistral", ids, hooks)["logits"], expected, atol=1e-5)


def test_bfloat16_is_computed_in_bfloat16(models_dir: Path) -> None:
    """The setting reaches the weights, and captures are float32 either way."""
    wide = TransformersBackend(models_dir, dtype="float32").forward("llama", [1, 2, 3], ["logits"])["logits"]
    narrow_backend = TransformersBackend(models_dir, dtype="bfloat16")
    narrow = narrow_backend.forward("llama", [1, 2, 3], ["logits"])["logits"]
    assert narrow.dtype == np.float32
    assert narrow_backend.describe("llama").data_type == "bfloat16"
    assert 0 < np.abs(narrow - wide).max() < 0.2
