"""vLLM over two ranks, each a process with half of every layer, against transformers in one."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tiny_models import make_llama
from vllm_machine import on_vllm

from weft_activations.adapters.transformers_backend import TransformersBackend
from weft_activations.adapters.vllm_backend import VllmBackend
from weft_activations.core.hooks import expand_hooks
from weft_activations.core.ports import Intervention, InterventionKind
from weft_common.errors import UnimplementedError

pytestmark = on_vllm


@pytest.mark.timeout(600)
def test_two_ranks_capture_what_one_process_does(tmp_path: Path) -> None:
    """Every hook of mixed prompts, of a changed one and of a harvest's streams is as transformers computes it."""
    make_llama(tmp_path / "llama", d_model=128, num_heads=4, num_kv_heads=2, d_mlp=96, max_tokens=512)
    reference = TransformersBackend(tmp_path)
    generator = np.random.default_rng(0)
    prompts = [generator.integers(0, 300, size).tolist() for size in (1, 150, 40, 200)]
    value = generator.normal(size=128).astype(np.float32)
    changes = [
        Intervention(1, "mlp_out", InterventionKind.ADD, (3, 30), value),
        Intervention(2, "resid_mid", InterventionKind.SCALE, (), None, 0.5),
    ]
    asked = [(prompt, []) for prompt in prompts] + [(prompts[2], changes)]
    backend = VllmBackend(tmp_path, batch_tokens=128, kv_cache_bytes=16 << 20, tensor_parallel=2)
    info = backend.describe("llama")
    hooks = list(expand_hooks(info.components, info).values())
    with pytest.raises(UnimplementedError, match=r"'layers\.0\.attn\.z' over 2 ranks"):
        backend.forward("llama", [1, 2], ["layers.0.attn.z"])
    try:
        with ThreadPoolExecutor(len(asked)) as threads:
            running = [threads.submit(backend.forward, "llama", *one[:1], hooks, one[1]) for one in asked]
            captured = [one.result() for one in running]
        into = {name: np.empty((3, 188, 128), np.float32) for name in ("mlp_in", "mlp_out")}
        backend.streams("llama", [[np.array(prompts[1]), np.array(prompts[2])]], into)
    finally:
        backend.close()
    for (prompt, changed), found in zip(asked, captured, strict=True):
        expected = reference.forward("llama", prompt, hooks, changed)
        for hook in hooks:
            np.testing.assert_allclose(found[hook], expected[hook], rtol=1e-4, atol=2e-5, err_msg=hook)
    for name, array in into.items():
        for layer in range(3):
            rows = np.concatenate([captured[index][f"layers.{layer}.{name}"][1:] for index in (1, 2)])
            np.testing.assert_allclose(array[layer], rows, rtol=1e-4, atol=2e-5)
