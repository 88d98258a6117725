"""
Edges against one autograd.grad a target, in float64, on Llama and GPT-2 written from the papers; memory, and heads.

Other families, and what holds of every graph: `test_families`, `test_invariants`.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from attribution_rig import oracle_edges
from swept_model import IDS, LOGITS, Swept, build

from weft_attribution.core.sweep import _Batch, sweep, target_constants


@pytest.fixture(params=["llama", "gpt2"])
def swept(request: pytest.FixtureRequest, tmp_path: Path) -> Swept:
    return build(tmp_path, request.param)


@pytest.mark.parametrize("jump", [False, True])
@pytest.mark.parametrize("input_hook", ["mlp_in", "resid_mid"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_edges_equal_autograd(tmp_path: Path, family: str, input_hook: str, jump: bool) -> None:
    """Every edge is what autograd gives, to 1e-8 of the largest edge of its row."""
    swept = build(tmp_path, family, input_hook=input_hook, jump=jump)
    active, expected, values = oracle_edges(swept.model, swept.tensors, IDS, LOGITS.tolist(), input_hook=input_hook)
    found = list(
        zip(
            swept.features.layer_N.tolist(),
            swept.features.position_N.tolist(),
            swept.features.index_N.tolist(),
            strict=True,
        )
    )
    assert found == active
    assert len(active) > 30
    edges = swept.edges()
    scale = np.abs(expected).max(axis=1, keepdims=True)
    assert np.abs(edges - expected).max() <= 1e-8 * scale.min()
    np.testing.assert_allclose(edges, expected, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(swept.targets.value_N.numpy(), values, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("memory_bytes", [1, 50_000, 1 << 30])
def test_result_does_not_depend_on_memory(tmp_path: Path, memory_bytes: int) -> None:
    """Decoders in files and waves of any size, down to single rows, give the same edges."""
    whole = build(tmp_path, "llama").edges(16)
    mapped = build(tmp_path, "llama", max_writer_bytes=0)
    assert mapped.features.mapped
    found = mapped.edges(16, workers=2, memory_bytes=memory_bytes)
    np.testing.assert_allclose(found, whole, rtol=1e-10, atol=1e-13)


def test_waves_stay_within_memory(swept: Swept, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients and edges of the batches on their way take the memory given, counted at every step; progress rises."""
    ids, limit, most, done = np.array(IDS), 150_000, 0, [0]
    waiting: list[_Batch] = []
    down = _Batch.down

    def count(batch: _Batch, layer: int) -> None:
        nonlocal most
        if batch not in waiting:
            waiting.append(batch)
        down(batch, layer)
        held = (part for each in waiting for part in vars(each).values() if isinstance(part, torch.Tensor))
        most = max(most, sum(part.nbytes for part in held))

    monkeypatch.setattr(_Batch, "down", count)

    def take(rows: np.ndarray, dense: np.ndarray) -> None:
        waiting.clear()

    sweep(
        swept.operator, swept.features, swept.targets, ids, batch_size=8, take=take, memory_bytes=limit,
        check=done.append,
    )  # fmt: skip
    assert limit / 4 < most <= limit
    assert done == sorted(done)
    assert 0 < done[-1] <= len(swept.targets.layer_N)


def test_heads_and_bypass_make_the_edge(swept: Swept) -> None:
    """What goes through each head of a layer, and what goes past its attention, add up to the edges, layer by layer."""
    whole = swept.edges()
    through_any = False
    for layer, pattern_HPP in enumerate(swept.operator.pattern_HPP):
        heads = range(len(pattern_HPP))

        def with_heads(kept: list[int], layer: int = layer, pattern_HPP: torch.Tensor = pattern_HPP) -> np.ndarray:
            chosen = torch.zeros(len(pattern_HPP), 1, 1, dtype=pattern_HPP.dtype)
            chosen[kept] = 1
            swept.operator.pattern_HPP[layer] = pattern_HPP * chosen
            try:
                return swept.edges()
            finally:
                swept.operator.pattern_HPP[layer] = pattern_HPP

        bypass = with_heads([])
        loadings = [with_heads([head]) - bypass for head in heads]
        np.testing.assert_allclose(bypass + sum(loadings), whole, rtol=1e-9, atol=1e-12)
        through_any = through_any or all(np.abs(loading).max() > 1e-6 for loading in loadings)
    assert through_any


@pytest.mark.parametrize("bias", [-3.0, -100.0])
def test_few_or_no_features_work(tmp_path: Path, bias: float) -> None:
    """A last position, or a whole prompt, without active features still gives rows that add up."""
    swept = build(tmp_path, "gpt2", bias=bias)
    keep = swept.features.position_N < len(IDS) - 1
    assert keep.all() if bias < -50 else len(keep) < 30
    constant = target_constants(swept.operator, swept.targets, swept.features.constant_LPD).numpy()
    total = swept.edges().sum(axis=1) + constant
    np.testing.assert_allclose(total, swept.targets.value_N.numpy(), rtol=1e-10, atol=1e-10)
