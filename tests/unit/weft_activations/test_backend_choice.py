"""Which backend the settings choose, and what the vLLM backend refuses before it loads anything."""

import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from tiny_models import make_gpt2, make_llama

from weft_activations import backend_choice
from weft_activations.adapters.transformers_backend import TransformersBackend
from weft_activations.adapters.vllm_backend import VllmBackend
from weft_activations.backend_choice import backend_versions, calls_at_once, opened_backend
from weft_activations.core.hooks import expand_hooks
from weft_activations.core.ports import Freeze, Intervention, InterventionKind
from weft_activations.settings import ActivationsSettings
from weft_common.errors import FailedPreconditionError, InvalidArgumentError, UnimplementedError


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_llama(folder / "llama", max_tokens=64)
    make_gpt2(folder / "gpt2")
    return folder


def settings(models_dir: Path, **fields: object) -> ActivationsSettings:
    return ActivationsSettings(
        insecure_no_auth=True, bucket_url="memory://", models_dir=models_dir, cache_target="unused:1", **fields
    )


def test_settings_choose_the_backend(models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers runs the models, one call at a time, unless vLLM is named; where that is missing, it is said."""
    with opened_backend(settings(models_dir)) as backend:
        assert isinstance(backend, TransformersBackend)
    assert calls_at_once(settings(models_dir)) == 1
    chosen = settings(models_dir, backend="vllm", vllm_calls=17)
    monkeypatch.setattr(backend_choice, "find_spec", lambda name: None)
    missing = r"vLLM is not installed here.*serve-by-vllm.*=transformers"
    with pytest.raises(FailedPreconditionError, match=missing), opened_backend(chosen):
        pass
    monkeypatch.setattr(backend_choice, "find_spec", lambda name: name == "vllm")
    with opened_backend(chosen) as backend:
        assert isinstance(backend, VllmBackend)
    assert calls_at_once(chosen) == 17


def test_versions_of_a_harvest_name_the_build_of_vllm(models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By whichever package it came; transformers has no version besides its own."""
    assert backend_versions(settings(models_dir)) == {}
    monkeypatch.setattr(backend_choice, "packages_distributions", lambda: {"vllm": ["pytest"]})
    assert backend_versions(settings(models_dir, backend="vllm")) == {"pytest": version("pytest")}


def test_vllm_backend_describes_models_without_vllm(models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model's description and its tokens need no vLLM, so what serves by transformers need not have it."""
    monkeypatch.setitem(sys.modules, "vllm", None)
    backend = VllmBackend(models_dir)
    assert backend.describe("llama").num_layers == 3
    assert backend.tokenize("llama", "a b")


def test_vllm_backend_describes_models_as_the_other_does(models_dir: Path) -> None:
    """The same but for what is shown, and the longest prompt, which vLLM wants room for one token after."""
    own, other = VllmBackend(models_dir, max_prompt_tokens=50), TransformersBackend(models_dir, max_prompt_tokens=50)
    assert own.model_ids() == other.model_ids()
    described, whole = own.describe("llama"), other.describe("llama")
    assert replace(described, components=whole.components, shown_in_part=False) == whole
    assert set(whole.components) - set(described.components) == {
        "logits_all",
        "layers.*.attn.scores",
        "layers.*.attn.pattern",
        "layers.*.attn.result",
    }
    on_two_ranks = VllmBackend(models_dir, tensor_parallel=2).describe("llama").components
    assert not [name for name in on_two_ranks if ".attn." in name or ".mlp." in name]
    assert VllmBackend(models_dir).describe("llama").max_tokens == 63
    ids = own.tokenize("llama", "The capital of France")
    assert ids == other.tokenize("llama", "The capital of France")
    assert own.token_pieces("llama", ids) == other.token_pieces("llama", ids)


def test_vllm_backend_refuses_what_it_cannot_give(models_dir: Path) -> None:
    """Each refusal names what there is instead, and comes before a model is loaded."""
    backend = VllmBackend(models_dir)
    info = backend.describe("llama")
    for hook in ("layers.*.attn.pattern", "blocks.0.attn.hook_pattern"):
        with pytest.raises(UnimplementedError, match=r"does not show .*layers\.\*\.mlp_in.*=transformers, which does"):
            expand_hooks([hook], info)
    with pytest.raises(InvalidArgumentError, match="there is no hook"):
        expand_hooks(["layers.*.attn.nothing"], info)
    with pytest.raises(FailedPreconditionError, match=r"GPT2LMHeadModel.*LlamaForCausalLM.*=transformers"):
        backend.describe("gpt2")
    with pytest.raises(UnimplementedError, match=r"show 'layers\.1\.attn\.pattern'; it does .*mlp_in.*=transformers"):
        backend.forward("llama", [1, 2], ["layers.1.attn.pattern"])
    change = Intervention(0, "mlp_out", InterventionKind.ABLATE)
    with pytest.raises(UnimplementedError, match="hold what is frozen"):
        backend.forward("llama", [1, 2], ["logits"], [change], Freeze(norm_scales=True))
    held = Intervention(0, "ln1.scale", InterventionKind.ABLATE)
    with pytest.raises(UnimplementedError, match=r"change 'layers\.0\.ln1\.scale'; it does .*mlp_out"):
        backend.forward("llama", [1, 2], ["logits"], [held])
    nothing = np.zeros((1, 32))
    for call, what in (
        (lambda: backend.passes("llama", [[1, 2]], "mlp_in"), "in the place of MLPs"),
        (lambda: backend.decoding("llama"), "token after token"),
        (lambda: backend.unembed("llama", nothing.astype(np.float32)), "unembed"),
        (lambda: backend.neuron_directions("llama", 0, nothing), "neuron's weights"),
        (lambda: backend.logit_directions("llama", [1]), "unembedding's weights"),
    ):
        with pytest.raises(UnimplementedError, match=f"{what}.*=transformers, which does"):
            call()


def test_vllm_that_is_not_there_is_said(models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where vLLM cannot be imported, the first pass says which extra has it, and the next one tries again."""
    monkeypatch.setitem(sys.modules, "vllm", None)
    backend = VllmBackend(models_dir)
    for _ in range(2):
        with pytest.raises(FailedPreconditionError, match="extra `vllm`"):
            backend.streams("llama", [[np.arange(3)]], {"mlp_in": np.empty((3, 2, 32), np.float32)})
    backend.close()
