"""Graphs of the most influential features: the ranking against dense inverses, the rows against the whole graph's."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from attribution_rig import ReferenceModel, ReferenceRunner, make_reference_folder, make_transcoder
from hypothesis import given, settings
from hypothesis import strategies as st
from random_graphs import dense_influence, random_graph

from weft_attribution.core import ranking
from weft_attribution.core.checkpoints import load_linear_weights
from weft_attribution.core.edge_file import EdgeScratch
from weft_attribution.core.pipeline import Building, Limits, capture_hooks
from weft_attribution.core.ranking import next_counts, partial_influence
from weft_attribution.core.targets import Target
from weft_attribution.core.transcoder import TranscoderReader
from weft_attribution.core.whole_graph import WholeGraph, open_graph
from weft_store.opening import open_store

IDS = [3, 17, 8, 29, 8, 11]
LOGITS, WEIGHTS = [5, 0, 31], np.array([0.5, 0.3, 0.1])


@given(st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_partial_influence_is_that_of_the_rows_so_far(seed: int) -> None:
    """Influence over some rows is the inverse's, with all other rows empty."""
    edges, dense, weights = random_graph(seed)
    table, rng = edges.table, np.random.default_rng(seed)
    nodes = edges.row_node(np.arange(edges.num_rows))
    taken = np.flatnonzero((rng.random(edges.num_rows) < 0.6) | (nodes >= table.logit_start))
    with EdgeScratch(edges.num_rows) as scratch:
        order = rng.permutation(taken)
        scratch.add(order, dense[nodes[order], : table.logit_start].astype(np.float32))
        found = partial_influence(scratch, table, taken, edges.layer_R, weights)
    left = np.setdiff1d(nodes, nodes[taken])
    dense[left] = 0
    expected, _ = dense_influence(dense, weights)
    expected[table.logit_start :] += weights
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@given(st.integers(0, 20_000), st.floats(0, 1))
@settings(deadline=None)
def test_steps_take_all_rows_and_rank_as_many_as_asked(wanted: int, share: float) -> None:
    """Steps add up; what is ranked is taken in steps of at most half of what there was, the rest in one."""
    ranked = int(share * wanted)
    counts = list(next_counts(wanted, ranked))
    done = np.concatenate([[0], np.cumsum(counts)]).astype(int)
    assert done[-1] == wanted
    assert all(count > 0 for count in counts)
    for before, count in list(zip(done[:-1], counts, strict=True))[:-1]:
        assert count <= max(256, before // 2)
    assert next(iter(next_counts(10**6, 0))) == 256


def make(folder: Path, max_features: int) -> tuple[WholeGraph, Building, list[int]]:
    """A graph of a small model with at most so many features, and how many it had whenever it was shown."""
    model = ReferenceModel(make_reference_folder(folder / "model", "llama"))
    store = open_store("memory://")
    make_transcoder(store, "t", model)
    capture = asyncio.run(ReferenceRunner(model).capture("tiny", IDS, capture_hooks("mlp_in")))
    weights = load_linear_weights(folder / "model")
    limits = Limits(batch_size=16, workers=2, max_active=1000, max_features=max_features, memory_bytes=1 << 24)
    wanted = [Target(token_id=token_id) for token_id in LOGITS]
    building = Building(weights, TranscoderReader(store, "t"), capture, wanted, WEIGHTS, limits)
    path, shown = folder / "edges.safetensors", []

    def opened() -> WholeGraph:
        return open_graph(path, model.num_layers, capture.tokens, capture.tokens[:3], tuple(WEIGHTS))

    building.build(path, lambda *_: None, lambda: shown.append(opened().edges.table.num_features))
    return opened(), building, shown


def densely(graph: WholeGraph) -> np.ndarray:
    """The adjacency over all nodes."""
    edges = graph.edges
    dense = np.zeros((edges.table.num_nodes, edges.table.num_nodes))
    rows = np.repeat(np.arange(edges.num_rows), np.diff(edges.indptr))
    dense[edges.row_node(rows), edges.indices] = edges.values
    return dense


def keys(graph: WholeGraph) -> list[tuple[int, int, int]]:
    nodes = graph.nodes
    return list(zip(nodes.layer_N.tolist(), nodes.position_N.tolist(), nodes.index_N.tolist(), strict=True))


@pytest.mark.parametrize("budget", [1, 9, 30])
def test_budget_takes_what_the_rows_so_far_rank_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    """The features are those of a greedy choice over dense inverses; their rows are the whole graph's."""
    monkeypatch.setattr(ranking, "_FIRST_ROWS", 4)
    whole, _, _ = make(tmp_path / "whole", 0)
    part, building, shown = make(tmp_path / "part", budget)
    dense, table = densely(whole), whole.edges.table
    active = table.num_features
    assert building.num_active == active > budget
    taken: list[int] = []
    counts = list(next_counts(budget, budget))
    for count in counts:
        sub = dense.copy()
        sub[np.setdiff1d(np.arange(active), taken)] = 0
        influence = dense_influence(sub, WEIGHTS)[0][:active]
        influence[taken] = -1
        taken += np.argsort(-influence, kind="stable")[:count].tolist()
    chosen = sorted(taken)
    every = keys(whole)
    assert keys(part) == [every[node] for node in chosen]
    kept = [*chosen, *range(active, table.num_nodes)]
    np.testing.assert_allclose(densely(part), dense[np.ix_(kept, kept)], rtol=1e-5, atol=1e-7)
    assert building.conservation_error() < 1e-4
    assert shown == [0, *np.cumsum(counts)[:-1].tolist()]


def test_whole_graph_is_shown_in_parts_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a budget an eighth of the features comes by rank and is shown; the rest follows at once."""
    monkeypatch.setattr(ranking, "_FIRST_ROWS", 4)
    graph, building, shown = make(tmp_path, 0)
    assert graph.edges.table.num_features == building.num_active
    assert shown[:2] == [0, 4]
    assert shown[-1] <= max(4, building.num_active // 8)
