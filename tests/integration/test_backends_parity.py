"""
One suite over both backends: captures are the model's own, whatever else runs beside them.

vLLM runs with prompts cut into small chunks, several at a time, and with room for the keys of little more than its
longest prompt: it must put prompts off and begin them again.
"""

import asyncio
import os
import pydoc_data.topics
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import make_model
from transformers import AutoModelForCausalLM
from vllm_machine import on_vllm

from weft_activations.adapters.transformers_backend import TransformersBackend
from weft_activations.adapters.vllm_backend import VllmBackend
from weft_activations.adapters.vllm_capture import CHANGED, CHANGED_ON_ONE_RANK, Recorder
from weft_activations.core.calls import run_call
from weft_activations.core.hooks import expand_hooks
from weft_activations.core.ports import Intervention, InterventionKind, ModelBackend
from weft_common.errors import WeftError

pytestmark = [*on_vllm, pytest.mark.timeout(600)]
MODEL = "smollm2-135m-instruct"
ROOT = Path(__file__).resolve().parents[2]
NUM_LAYERS, D = 30, 576
NAMES = ("resid_mid", "mlp_in", "mlp_out")
HOOKS = [f"layers.{layer}.{name}" for layer in range(NUM_LAYERS) for name in NAMES] + ["logits"]
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
SIZES = (129, 1, 2000, 1100, 2, 17, 129)
TOLERANCE = 1e-4


@dataclass
class Served:
    """A backend, and how many calls it takes at once."""

    backend: ModelBackend
    calls: int

    def capture(self, prompts: Sequence[Sequence[int]], **fields: Any) -> list[dict[str, np.ndarray]]:
        """Capture prompts, as many at once as the backend takes."""
        with ThreadPoolExecutor(self.calls) as threads:
            running = [threads.submit(self.backend.forward, MODEL, prompt, HOOKS, **fields) for prompt in prompts]
            return [one.result() for one in running]


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real model, and a small random one of each family that vLLM runs here."""
    folder = tmp_path_factory.mktemp("models")
    real = Path(os.environ.get("WEFT_TEST_MODELS_DIR", ROOT / ".weft" / "models"))
    (folder / MODEL).symlink_to((real / MODEL).resolve())
    for family in FAMILIES:
        make_model(folder / family, family, num_layers=2, hidden_size=128, head_dim=32)
    return folder


@pytest.fixture(scope="module")
def served_by_vllm(models_dir: Path) -> Iterator[Served]:
    backend = VllmBackend(
        models_dir,
        batch_tokens=256,
        chunk_tokens=128,
        kv_cache_bytes=96 << 20,
        max_prompt_tokens=2000,
        whole_prompts=False,
    )
    yield Served(backend, 16)
    backend.close()


@pytest.fixture(params=["transformers", "vllm"])
def served(request: pytest.FixtureRequest, models_dir: Path) -> Served:
    if request.param == "vllm":
        found: Served = request.getfixturevalue("served_by_vllm")
        return found
    return Served(TransformersBackend(models_dir), 1)


@pytest.fixture(scope="module")
def mixed(models_dir: Path) -> list[tuple[list[int], dict[str, np.ndarray]]]:
    """Prompts from 1 to 2,000 tokens, one of them twice, and what transformers' own modules take and return."""
    own = AutoModelForCausalLM.from_pretrained(models_dir / MODEL).requires_grad_(False)
    seen = {size: (prompt_of(size), seen_by_module_hooks(own, prompt_of(size))) for size in SIZES}
    return [seen[size] for size in SIZES]


@cache
def text_ids() -> list[int]:
    """Python's own help in the real model's tokens: the rounding of random ids would be that of no text."""
    folder = Path(os.environ.get("WEFT_TEST_MODELS_DIR", ROOT / ".weft" / "models"))
    text = " ".join(topic for _, topic in sorted(pydoc_data.topics.topics.items()))
    return TransformersBackend(folder).tokenize(MODEL, text[:100_000])


def prompt_of(num_tokens: int, start: int = 0) -> list[int]:
    assert len(text_ids()) >= start + num_tokens
    return text_ids()[start : start + num_tokens]


def seen_by_module_hooks(model: Any, token_ids: Sequence[int]) -> dict[str, np.ndarray]:
    """Run transformers' model by itself, with torch's hooks on its modules."""
    found: dict[str, np.ndarray] = {}
    handles = []
    for index, layer in enumerate(model.model.layers):

        def keep(_: Any, args: Any, out: torch.Tensor, name: str = f"layers.{index}.") -> None:
            found[name + "mlp_in"], found[name + "mlp_out"] = args[0][0].numpy(), out[0].numpy()

        def keep_stream(_: Any, args: Any, name: str = f"layers.{index}.resid_mid") -> None:
            found[name] = args[0][0].numpy().copy()

        handles.append(layer.mlp.register_forward_hook(keep))
        handles.append(layer.post_attention_layernorm.register_forward_pre_hook(keep_stream))
    logits = model(torch.tensor([list(token_ids)]), use_cache=False, logits_to_keep=1).logits
    for handle in handles:
        handle.remove()
    return found | {"logits": logits[0, -1].numpy()}


def worst_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest distance of a row from what it should be, over the length of that; one row may be a vector."""
    assert found.shape == expected.shape
    return float((np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)).max())


def test_captures_of_mixed_prompts_are_the_models_own(
    served: Served, mixed: list[tuple[list[int], dict[str, np.ndarray]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at once: each layer and token is what transformers computes."""
    passes: list[list[tuple[str, int, int]]] = []
    start_pass = Recorder.start_pass

    def noting(recorder: Recorder, scheduled: list[tuple[str, int, int]], *rest: torch.Tensor) -> None:
        passes.append(scheduled)
        start_pass(recorder, scheduled, *rest)

    monkeypatch.setattr(Recorder, "start_pass", noting)
    worst = 0.0
    for (prompt, expected), found in zip(mixed, served.capture([prompt for prompt, _ in mixed]), strict=True):
        for hook in HOOKS:
            error = worst_error(found[hook], expected[hook])
            assert error <= TOLERANCE, (hook, len(prompt), error)
            worst = max(worst, error)
    print(f"worst relative error of a token at a layer: {worst:.2g}")  # noqa: T201  shown by -s
    if isinstance(served.backend, VllmBackend):
        begun = [name for scheduled in passes for name, first, _ in scheduled if first == 0]
        assert len(begun) > len(set(begun)) == len(mixed), "nothing was put off and begun again"
        assert max(map(len, passes)) > 2, "prompts were not run together"
        longest = max((count for scheduled in passes for _, _, count in scheduled), default=0)
        assert longest <= 256, "a prompt was not cut"


def test_streams_of_a_harvest_are_its_captures(served: Served) -> None:
    """Rows lie one sequence after the other, without first positions, in what is one layer's part of a larger array."""
    sequences = [np.array(prompt_of(size, start=3000)) for size in (40, 130, 2, 40)]
    num_rows = sum(len(sequence) - 1 for sequence in sequences)
    into = {name: np.full((NUM_LAYERS, num_rows + 3, D), 7, np.float32) for name in NAMES}
    served.backend.streams(
        MODEL, [sequences[:2], sequences[2:]], {name: array[:, 1:-2] for name, array in into.items()}
    )
    captured = served.capture([sequence.tolist() for sequence in sequences])
    for name, array in into.items():
        assert (array[:, :1] == 7).all()
        assert (array[:, -2:] == 7).all()
        for layer in range(NUM_LAYERS):
            expected = np.concatenate([one[f"layers.{layer}.{name}"][1:] for one in captured])
            assert worst_error(array[layer, 1:-2], expected) <= TOLERANCE


async def test_cancelled_captures_leave_nothing_behind(served_by_vllm: Served) -> None:
    """Of captures that run at once those that are cancelled end before they are through, and the others are whole."""
    backend = served_by_vllm.backend
    assert isinstance(backend, VllmBackend)
    prompts = [prompt_of(900), prompt_of(20), prompt_of(1000)]
    with ThreadPoolExecutor(3) as threads:
        calls = [
            asyncio.create_task(run_call(threads, lambda prompt=prompt: backend.forward(MODEL, prompt, HOOKS)))
            for prompt in prompts
        ]
        short = await calls[1]
        calls[0].cancel()
        calls[2].cancel()
        ended = await asyncio.gather(calls[0], calls[2], return_exceptions=True)
    assert all(isinstance(one, asyncio.CancelledError) for one in ended)
    assert backend.num_running == 0
    assert np.isfinite(short["logits"]).all()
    with pytest.raises(WeftError, match="refuses the prompt"):
        backend.forward(MODEL, prompt_of(2001), ["logits"])


def test_prompt_whose_rows_are_missing_is_refused(served_by_vllm: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass whose hooks are not told of a request, as rows from a prefix cache would be, ends as an error."""
    start_pass = Recorder.start_pass

    def forgetting(recorder: Recorder, scheduled: list[tuple[str, int, int]], *rest: torch.Tensor) -> None:
        start_pass(recorder, scheduled, *rest)
        if any(first == 256 for _, first, _ in scheduled):
            recorder._wanting.pop("layers.7.mlp_in")

    monkeypatch.setattr(Recorder, "start_pass", forgetting)
    with pytest.raises(WeftError, match=r"not whole and is not given out: layers\.7\.mlp_in saw 256 of 300"):
        served_by_vllm.backend.forward(MODEL, prompt_of(300), HOOKS)


@pytest.mark.parametrize("family", FAMILIES)
def test_components_and_interventions_are_those_of_transformers(
    served_by_vllm: Served, models_dir: Path, family: str
) -> None:
    """Every component that vLLM shows, clean and after each change at each place that it changes, on many prompts."""
    backend, reference = served_by_vllm.backend, TransformersBackend(models_dir)
    info = backend.describe(family)
    hooks = list(expand_hooks(info.components, info).values())
    generator = np.random.default_rng(3)
    asked: list[tuple[list[int], list[Intervention]]] = [
        (generator.integers(0, info.vocab_size, size).tolist(), []) for size in (1, 100, 37)
    ]
    everywhere = [name for name in (*CHANGED, *CHANGED_ON_ONE_RANK) if not name.startswith(("embed", "resid_final"))]
    for number, (name, kind) in enumerate((name, kind) for name in everywhere for kind in InterventionKind):
        positions = (6, 2) if number % 2 else ()
        heads = (1,) if name.startswith("attn.") else ()
        value = np.asarray(generator.normal(), np.float32)
        change = Intervention(number % 2, name, kind, positions, value, 0.5, heads, (3, 5))
        asked.append((asked[2][0], [change]))
    along = generator.normal(size=128).astype(np.float32)
    along /= np.linalg.norm(along)
    steered = Intervention(0, "resid_mid", InterventionKind.SET, (), along * 3, direction=along)
    asked.append((asked[1][0], [steered, Intervention(1, "mlp_out", InterventionKind.SCALE, (40, 90), factor=2.0)]))
    with ThreadPoolExecutor(16) as threads:
        running = [threads.submit(backend.forward, family, ids, hooks, changes) for ids, changes in asked]
        found = [one.result() for one in running]
    for (ids, changes), captured in zip(asked, found, strict=True):
        expected = reference.forward(family, ids, hooks, changes)
        for hook in hooks:
            np.testing.assert_allclose(
                captured[hook], expected[hook], rtol=1e-4, atol=2e-5, err_msg=f"{hook} {changes}"
            )
        clean = found[{100: 1, 37: 2}.get(len(ids), 0)]
        assert all(not np.array_equal(captured[change.name], clean[change.name]) for change in changes)
    rows = backend.forward_rows(family, asked[2][0], [changes for _, changes in asked[2:-1]], ["logits"])
    np.testing.assert_allclose(rows["logits"], [captured["logits"] for captured in found[2:-1]], rtol=1e-4, atol=2e-5)
