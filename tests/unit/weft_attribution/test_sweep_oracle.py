"""Edges against one autograd.grad a target, in float64, on random Llama and GPT-2 models."""

from pathlib import Path

import numpy as np
import pytest
import torch
from attribution_rig import oracle_edges
from swept_model import IDS, LOGITS, Swept, build

from weft_attribution.core.pipeline import conservation_error
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


def test_conservation_holds(swept: Swept) -> None:
    """A target's value is the sum of its edges and a constant that a forward pass gives by itself."""
    constant = target_constants(swept.operator, swept.targets, swept.features.constant_LPD).numpy()
    error = conservation_error(
        swept.targets.value_N.numpy(), swept.edges().sum(axis=1), constant, num_logits=len(LOGITS)
    )
    assert error < 1e-12


@pytest.mark.parametrize("other_input", [False, True])
def test_doubled_source_moves_targets_by_its_column(swept: Swept, other_input: bool) -> None:
    """With all parts held, one more of a feature's output moves every target by its edges, whatever the input is."""
    edges = swept.edges()
    clean = swept.model.streams(IDS)
    tokens, positions = swept.model.embed([(i + 1) % 40 for i in IDS] if other_input else IDS)
    before = swept.model.run(tokens + positions, held=clean)
    for node in range(0, len(swept.features), 7):
        layer, position, index = (
            int(a[node]) for a in (swept.features.layer_N, swept.features.position_N, swept.features.index_N)
        )
        added = {}
        for target in range(layer, swept.model.num_layers):
            vector = torch.zeros(len(IDS), swept.model.d_model, dtype=torch.float64)
            vector[position] = (
                swept.features.activation_N[node] * swept.tensors[f"W_dec_{layer}"][index, target - layer]
            )
            added[target] = vector
        after = swept.model.run(tokens + positions, held=clean, added=added)
        moved = []
        for at, where, which in zip(
            swept.features.layer_N, swept.features.position_N, swept.features.index_N, strict=True
        ):
            stream = f"layers.{at}.mlp_in"
            moved.append(float((after[stream] - before[stream])[where] @ swept.tensors[f"W_enc_{at}"][which]))
        change = after["logits"] - before["logits"]
        moved += (change - change.mean())[LOGITS].tolist()
        np.testing.assert_allclose(edges[:, node], moved, rtol=1e-9, atol=1e-12)


def test_replacement_model_has_the_models_logits(swept: Swept) -> None:
    """With every source at its value the linear model gives the model's own logits."""
    tokens, positions = swept.model.embed(IDS)
    features = swept.features
    outputs = [
        features.reconstruction(layer, features.activation_N) + features.constant_LPD[layer] + features.error_LPD[layer]
        for layer in range(swept.model.num_layers)
    ]
    _, final = swept.operator.forward(tokens + positions, torch.stack(outputs), biases=True)
    readers, offset = swept.operator.weights.logit_readers(torch.arange(40))
    logits = (final[-1] / swept.operator.final_scale_P[-1]) @ readers.T + offset
    model = torch.from_numpy(swept.capture.tensors["logits"])
    torch.testing.assert_close(logits, model - model.mean(), rtol=1e-10, atol=1e-10)


def test_edges_are_causal(swept: Swept) -> None:
    """No source of the same or a higher layer, or of a later position, has an edge; position 0 has no features."""
    edges = swept.edges()
    features, layers, count = len(swept.features), swept.model.num_layers, len(IDS)
    source_layer = np.concatenate([swept.features.layer_N, np.repeat(np.arange(layers), count - 1), np.full(count, -1)])
    source_position = np.concatenate(
        [swept.features.position_N, np.tile(np.arange(1, count), layers), np.arange(count)]
    )
    before = (source_layer[None] < swept.targets.layer_N[:, None]) & (
        source_position[None] <= swept.targets.position_N[:, None]
    )
    assert (edges[~before] == 0).all()
    assert (edges[:, :features][before[:, :features]] != 0).mean() > 0.9
    assert (swept.features.position_N > 0).all()


@pytest.mark.parametrize("batch_size", [1, 3, 10_000])
def test_result_does_not_depend_on_batches_or_shards(swept: Swept, batch_size: int) -> None:
    """Any batch size, and rows computed apart, give the same edges."""
    whole = swept.edges()
    np.testing.assert_allclose(swept.edges(batch_size), whole, rtol=1e-10, atol=1e-13)
    rows = np.arange(len(whole))
    np.testing.assert_allclose(swept.edges(4, workers=3), whole, rtol=1e-10, atol=1e-13)
    shards = np.empty_like(whole)
    for shard in range(3):
        shards[rows % 3 == shard] = swept.edges(5, rows[rows % 3 == shard][::-1].copy())
    np.testing.assert_allclose(shards, whole, rtol=1e-10, atol=1e-13)


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


def test_logit_difference_is_the_difference_of_rows(swept: Swept) -> None:
    """The edges of logit(x) - logit(y) are row x less row y."""
    edges = swept.edges()
    readers = swept.targets.last_reader_KD
    readers[-1] = readers[-3] - readers[-2]
    np.testing.assert_allclose(swept.edges()[-1], edges[-3] - edges[-2], rtol=1e-9, atol=1e-12)


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


def test_own_layer_decoder_equals_a_per_layer_transcoder(tmp_path: Path) -> None:
    """A CLT whose decoders write to their own layer alone has the edges of a per-layer transcoder."""
    swept = build(tmp_path, "llama")
    for writers, layer in zip(swept.features.writers_UD, range(swept.model.num_layers), strict=True):
        below = len(swept.features.writers_UD[layer - 1]) if layer else 0
        writers[:below] = 0
    edges = swept.edges()
    tensors = {
        name: torch.cat([value[:, :1], torch.zeros_like(value[:, 1:])], dim=1) if name.startswith("W_dec") else value
        for name, value in swept.tensors.items()
    }
    _, expected, _ = oracle_edges(swept.model, tensors, IDS, LOGITS.tolist())
    features = len(swept.features)
    np.testing.assert_allclose(edges[:, :features], expected[:, :features], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("bias", [-3.0, -100.0])
def test_few_or_no_features_work(tmp_path: Path, bias: float) -> None:
    """A last position, or a whole prompt, without active features still gives rows that add up."""
    swept = build(tmp_path, "gpt2", bias=bias)
    keep = swept.features.position_N < len(IDS) - 1
    assert keep.all() if bias < -50 else len(keep) < 30
    constant = target_constants(swept.operator, swept.targets, swept.features.constant_LPD).numpy()
    total = swept.edges().sum(axis=1) + constant
    np.testing.assert_allclose(total, swept.targets.value_N.numpy(), rtol=1e-10, atol=1e-10)
