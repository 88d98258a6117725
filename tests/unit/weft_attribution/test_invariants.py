"""
What must hold of every graph, over random models of every family, transcoders, prompts, batches, budgets and shards.

The model is transformers' own in float64 (`frozen_transformer`); a graph is checked by running it frozen with sources
multiplied by any factors, which never uses the sweep. Influence and scores have their own in
`test_influence_and_pruning`, heads in `test_sweep_oracle`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from attribution_rig import oracle_edges
from frozen_transformer import VOCAB, FrozenTransformer, Written
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from swept_model import Swept, build_from
from tiny_models import FAMILIES
from torch import Tensor

from weft_attribution.core.graph_json import graph_json
from weft_attribution.core.influence import compute_influence, cumulative_share, prune
from weft_attribution.core.pipeline import Building, Limits
from weft_attribution.core.ports import Token
from weft_attribution.core.targets import Target
from weft_attribution.core.whole_graph import WholeGraph, open_graph

LOGITS = [5, 0, 31]
WEIGHTS = np.array([0.5, 0.3, 0.1])
SCHEMA = Path(__file__).parents[2] / "assets" / "graph.schema.json"
Models = Callable[[str, int, int], FrozenTransformer]
few = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Each model once."""
    root = tmp_path_factory.mktemp("models")
    return cache(
        lambda family, num_layers, seed: FrozenTransformer(
            family, root / f"{family}-{num_layers}-{seed}", num_layers=num_layers, seed=seed
        )
    )


@dataclass(frozen=True)
class Case:
    """A model, a prompt and a transcoder."""

    family: str
    num_layers: int
    seed: int
    ids: tuple[int, ...]
    resid_mid: bool
    jump: bool
    window: int
    skip: bool
    features: int
    bias: float
    transcoder_seed: int

    def build(self, models: Models, **others: Any) -> Swept:
        model = models(self.family, self.num_layers, self.seed)
        options = {"window": self.window, "skip": self.skip, **others}
        return build_from(
            model, model.folder, ids=self.ids, jump=self.jump, features=self.features, bias=self.bias,
            input_hook="resid_mid" if self.resid_mid and not model.is_parallel else "mlp_in",
            seed=self.transcoder_seed, **options,
        )  # fmt: skip


cases = st.builds(
    Case,
    family=st.sampled_from(sorted(FAMILIES)),
    num_layers=st.integers(1, 3),
    seed=st.integers(0, 1),
    ids=st.lists(st.integers(0, VOCAB - 1), min_size=2, max_size=8).map(tuple),
    resid_mid=st.booleans(),
    jump=st.booleans(),
    window=st.integers(1, 3),
    skip=st.booleans(),
    features=st.integers(1, 12),
    bias=st.sampled_from([-0.2, -0.7]),
    transcoder_seed=st.integers(0, 10**6),
)


def values_with(swept: Swept, factor_N: Tensor) -> np.ndarray:
    """What targets read in the frozen model with every source times its factor, by running it."""
    features, model, hook = swept.features, swept.model, swept.input_hook
    ids = [token.id for token in swept.capture.tokens]
    clean = model.streams(ids)
    positions, count = len(ids), len(features)
    error_LP = factor_N[count : count + model.num_layers * (positions - 1)].view(model.num_layers, -1)
    tokens, added = model.embed(ids)
    outputs: list[Written] = []
    for layer in range(model.num_layers):
        stream, skip = f"layers.{layer}.{hook}", swept.tensors.get(f"W_skip_{layer}")
        out = clean[f"layers.{layer}.mlp_out"].clone()
        if skip is not None:
            out -= clean[stream] @ skip.T
        out[1:] = swept.tensors[f"b_dec_{layer}"] + features.error_LPD[layer, 1:] * error_LP[layer][:, None]
        for node in range(count):
            at, where, which = (int(a[node]) for a in (features.layer_N, features.position_N, features.index_N))
            decoder = swept.tensors[f"W_dec_{at}"][which]
            if 0 <= layer - at < len(decoder):
                out[where] += factor_N[node] * features.activation_N[node] * decoder[layer - at]
        if skip is None:
            outputs.append(out)
        else:
            outputs.append(lambda seen, out=out, stream=stream, skip=skip: out + seen[stream] @ skip.T)
    run = model.run(tokens * factor_N[-positions:, None] + added, held=clean, mlp_out=outputs)
    pre = [
        float(run[f"layers.{at}.{hook}"][where] @ swept.tensors[f"W_enc_{at}"][which]
              + swept.tensors[f"b_enc_{at}"][which])
        for at, where, which in zip(features.layer_N, features.position_N, features.index_N, strict=True)
    ]  # fmt: skip
    logits = run["logits_before_cap"]
    return np.array([*pre, *(logits - logits.mean())[LOGITS].tolist()])


def close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9 * np.abs(expected).max(initial=1.0))


@given(case=cases)
@few
def test_edges_equal_autograd_everywhere(models: Models, case: Case) -> None:
    """Features and edges are those of one autograd.grad a target."""
    swept = case.build(models)
    active, expected, values = oracle_edges(
        swept.model, swept.tensors, case.ids, LOGITS, input_hook=swept.input_hook
    )  # fmt: skip
    features = swept.features
    places = zip(features.layer_N.tolist(), features.position_N.tolist(), features.index_N.tolist(), strict=True)
    assert list(places) == active
    close(swept.edges(), expected)
    close(swept.targets.value_N.numpy(), values)


@given(case=cases)
@few
def test_values_are_constant_plus_edges(models: Models, case: Case) -> None:
    """With all sources at zero targets read the constant; with all at one, what the model itself gives them."""
    swept = case.build(models)
    edges, values = swept.edges(), swept.targets.value_N.numpy()
    ones = torch.ones(edges.shape[1], dtype=torch.float64)
    close(values_with(swept, 0 * ones) + edges.sum(axis=1), values)
    close(values_with(swept, ones), values)


@given(case=cases, seed=st.integers(0, 10**6))
@few
def test_doubled_source_moves_targets_by_its_column_on_any_input(models: Models, case: Case, seed: int) -> None:
    """One more of any source moves every target by its edges, whatever all sources are at: gradients are constants."""
    swept = case.build(models)
    edges, rng = swept.edges(), np.random.default_rng(seed)
    factor_N = torch.from_numpy(rng.normal(size=edges.shape[1]))
    before = values_with(swept, factor_N)
    for node in rng.permutation(edges.shape[1])[:3].tolist():
        more_N = factor_N.clone()
        more_N[node] += 1
        close(values_with(swept, more_N) - before, edges[:, node])


@given(case=cases)
@few
def test_linear_model_has_the_models_logits(models: Models, case: Case) -> None:
    """The sweep's own operator, forward with every source at its value, gives the model's logits."""
    swept = case.build(models)
    features, operator = swept.features, swept.operator
    outputs = [
        features.reconstruction(layer, features.activation_N) + features.constant_LPD[layer] + features.error_LPD[layer]
        for layer in range(swept.model.num_layers)
    ]
    embed_PD = operator.weights.embed(torch.tensor(case.ids)) + operator.position_embedding()
    _, final_PD = operator.forward(embed_PD, torch.stack(outputs), biases=True)
    readers_VD, offset_V = operator.weights.logit_readers(torch.arange(VOCAB))
    found = (final_PD[-1] / operator.final_scale_P[-1]) @ readers_VD.T + offset_V
    model = swept.model.streams(case.ids)["logits_before_cap"]
    close(found.numpy(), (model - model.mean()).numpy())


@given(case=cases)
@few
def test_edges_go_up_and_on(models: Models, case: Case) -> None:
    """A source lies in a lower layer and at no later position than its target; nothing else has an edge."""
    swept = case.build(models)
    edges, layers, count = swept.edges(), case.num_layers, len(case.ids)
    layer_N = np.concatenate([swept.features.layer_N, np.repeat(np.arange(layers), count - 1), np.full(count, -1)])
    errors = np.tile(np.arange(1, count), layers)
    position_N = np.concatenate([swept.features.position_N, errors, np.arange(count)])
    targets = swept.targets
    before = (layer_N < targets.layer_N[:, None]) & (position_N <= targets.position_N[:, None])
    assert (edges[~before] == 0).all()
    assert (edges[-len(LOGITS) :, -1] != 0).any()


@given(case=cases, data=st.data())
@few
def test_how_rows_are_computed_changes_nothing(models: Models, case: Case, data: st.DataObject) -> None:
    """Batches, workers, memory, decoders in files, and rows shared out in any order give the same edges."""
    whole = case.build(models).edges(10_000, memory_bytes=1 << 30)
    swept = case.build(models, max_writer_bytes=data.draw(st.sampled_from([0, 1 << 30])))
    shard_N = np.random.default_rng(data.draw(st.integers(0, 99))).permutation(len(whole))
    found = np.empty_like(whole)
    for rows in np.array_split(shard_N, data.draw(st.integers(1, 4))):
        if len(rows):
            found[np.sort(rows)] = swept.edges(
                data.draw(st.integers(1, 20)),
                rows,
                workers=data.draw(st.integers(1, 3)),
                memory_bytes=data.draw(st.sampled_from([1, 20_000, 1 << 20])),
            )
    close(found, whole)


@given(case=cases)
@few
def test_decoders_of_their_own_layer_are_a_per_layer_transcoder(models: Models, case: Case) -> None:
    """Zeros in place of a cross-layer transcoder's later decoders, or no such decoders, are the same graph."""
    narrow, wide = case.build(models, window=1), case.build(models, window=case.num_layers)
    assume(len(wide.features))
    for layer in range(case.num_layers):
        wide.tensors[f"W_dec_{layer}"][:, 1:] = 0
        wide.tensors[f"W_dec_{layer}"][:, :1] = narrow.tensors[f"W_dec_{layer}"]
        for name in ("W_enc", "b_enc", "b_dec", "threshold", "W_skip"):
            if f"{name}_{layer}" in wide.tensors:
                wide.tensors[f"{name}_{layer}"] = narrow.tensors[f"{name}_{layer}"]
    active, expected, _ = oracle_edges(wide.model, wide.tensors, case.ids, LOGITS, input_hook=wide.input_hook)
    assert len(active) == len(narrow.features)
    close(narrow.edges(), expected)


@given(case=cases)
@few
def test_difference_of_logits_is_the_difference_of_rows(models: Models, case: Case) -> None:
    """The row of logit(x) - logit(y) is row x less row y."""
    swept = case.build(models)
    edges = swept.edges()
    readers = swept.targets.last_reader_KD
    readers[2] = readers[0] - readers[1]
    close(swept.edges()[-1], edges[-3] - edges[-2])


def make_graph(swept: Swept, folder: Path, limits: Limits) -> WholeGraph:
    """Build as the service does, and open what was written."""
    wanted = [Target(token_id=token_id) for token_id in LOGITS]
    building = Building(swept.operator.weights, swept.reader, swept.capture, wanted, WEIGHTS, limits)
    building.build(folder / "edges.safetensors", lambda *_: None, lambda: None)
    assert building.conservation_error() < (1e-5 if not limits.max_features else np.inf)
    logits = tuple(Token(token_id, f"t{token_id}") for token_id in LOGITS)
    path, tokens = folder / "edges.safetensors", swept.capture.tokens
    return open_graph(path, swept.model.num_layers, tokens, logits, tuple(WEIGHTS))


def densely(graph: WholeGraph) -> np.ndarray:
    """Rows by columns."""
    edges = graph.edges
    dense = np.zeros((edges.num_rows, edges.table.logit_start))
    rows = np.repeat(np.arange(edges.num_rows), np.diff(edges.indptr))
    dense[rows, edges.indices] = edges.values
    return dense


@given(case=cases, budget=st.integers(1, 40), batch_size=st.integers(1, 16))
@few
def test_budget_keeps_rows_of_the_whole_graph(
    models: Models, tmp_path_factory: pytest.TempPathFactory, case: Case, budget: int, batch_size: int
) -> None:
    """Of as many features as the budget allows, the rows and columns are those of the graph of all."""
    swept = case.build(models)
    folder = tmp_path_factory.mktemp("graph")
    limits = Limits(batch_size=batch_size, workers=2, max_active=1000, max_features=budget, memory_bytes=1 << 20)
    graph, features = make_graph(swept, folder, limits), swept.features
    table = graph.edges.table
    assert table.num_features == min(budget, len(features))
    every = list(zip(features.layer_N, features.position_N, features.index_N, strict=True))
    nodes = graph.nodes
    kept = [every.index(key) for key in zip(nodes.layer_N, nodes.position_N, nodes.index_N, strict=True)]
    count, whole = len(every), swept.edges()
    rows = [*kept, *range(count, len(whole))]
    columns = [*kept, *range(count, whole.shape[1])]
    expected = whole[np.ix_(rows, columns)]
    np.testing.assert_allclose(densely(graph), expected, rtol=1e-5, atol=1e-6 * np.abs(whole).max())


@given(case=cases)
@few
def test_graph_as_json_is_valid_and_the_same(
    models: Models, tmp_path_factory: pytest.TempPathFactory, case: Case
) -> None:
    """What a pruned graph's JSON says is what the sweep computed; ids are unique, and the schema holds."""
    swept = case.build(models)
    limits = Limits(batch_size=16, workers=1, max_active=1000, max_features=0, memory_bytes=1 << 20)
    graph = make_graph(swept, tmp_path_factory.mktemp("graph"), limits)
    influence, _ = compute_influence(graph.edges, WEIGHTS)
    pruned = prune(graph.edges, influence, WEIGHTS, node_threshold=0.8, edge_threshold=0.98)
    metadata = {
        "slug": "s", "scan": "m", "prompt": "p", "prompt_tokens": [token.text for token in swept.capture.tokens],
        "transcoder_list": [], "schema_version": 1, "node_threshold": 0.8,
    }  # fmt: skip
    content = json.loads(json.dumps(graph_json(graph.nodes, pruned, cumulative_share(influence), metadata)))
    jsonschema.validate(content, json.loads(SCHEMA.read_text()))
    names = [node["node_id"] for node in content["nodes"]]
    assert len(set(names)) == len(names)
    dense, table = densely(graph), graph.edges.table
    assert len(content["links"]) == len(pruned.weights)
    for link, source, target in zip(content["links"], pruned.sources, pruned.targets, strict=True):
        row = target if target < table.num_features else target - table.logit_start + table.num_features
        np.testing.assert_allclose(link["weight"], dense[row, source], rtol=1e-5)


@given(case=cases)
@few
def test_last_position_without_features_works(models: Models, case: Case) -> None:
    """Thresholds that nothing at the last position reaches leave a graph that adds up."""
    swept = case.build(models)
    assume((swept.features.position_N == len(case.ids) - 1).any())
    clean = swept.model.streams(case.ids)
    for layer in range(case.num_layers):
        last = clean[f"layers.{layer}.{swept.input_hook}"][-1]
        pre = last @ swept.tensors[f"W_enc_{layer}"].T + swept.tensors[f"b_enc_{layer}"]
        swept.tensors[f"threshold_{layer}"] = pre.clamp(min=0) + 1e-6
    active, expected, values = oracle_edges(
        swept.model, swept.tensors, case.ids, LOGITS, input_hook=swept.input_hook
    )  # fmt: skip
    silent = case.build(models, tensors=swept.tensors)
    assert not (silent.features.position_N == len(case.ids) - 1).any()
    assert len(active) == len(silent.features)
    close(silent.edges(), expected)
    close(silent.targets.value_N.numpy(), values)
    close(values_with(silent, torch.zeros(expected.shape[1], dtype=torch.float64)) + expected.sum(axis=1), values)
