"""Influence, pruning and scores on random graphs, against dense matrix inverses and an independent dense pruning."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from random_graphs import Dense, dense_influence, random_graph

from weft_attribution.core import influence as module
from weft_attribution.core.influence import (
    compute_influence,
    cumulative_share,
    graph_scores,
    prune,
    share_threshold,
)
from weft_attribution.core.interventions import predict


def dense_threshold(scores: Dense, share: float) -> float:
    """The score at which a full sort reaches the share."""
    ordered = np.sort(scores.ravel())[::-1]
    place = np.searchsorted(np.cumsum(ordered) / ordered.sum(), share)
    return float(ordered[min(place, len(ordered) - 1)])


@given(st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_influence_is_the_inverse_and_the_iteration(seed: int) -> None:
    """Back-substitution, powers added up, and the inverse agree."""
    edges, dense, weights = random_graph(seed)
    found, sums = compute_influence(edges, weights)
    expected, normal = dense_influence(dense, weights)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    step = np.zeros(len(dense))
    step[edges.table.logit_start :] = weights
    total = np.zeros(len(dense))
    while step.any():
        step = step @ normal
        total += step
    np.testing.assert_allclose(found, total, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(sums, np.abs(dense).sum(axis=1)[edges.row_node(np.arange(edges.num_rows))], rtol=1e-12)


@given(st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_scores_lie_between_0_and_1(seed: int) -> None:
    """Both scores are shares; completeness is its definition over the dense matrix."""
    edges, dense, weights = random_graph(seed)
    influence, sums = compute_influence(edges, weights)
    scores = graph_scores(edges, influence, weights, sums)
    assert 0 <= scores.replacement <= 1
    assert 0 <= scores.completeness <= 1
    expected, normal = dense_influence(dense, weights)
    output = expected.copy()
    output[edges.table.logit_start :] += weights
    error_share = normal[:, edges.table.error_start : edges.table.token_start].sum(axis=1)
    np.testing.assert_allclose(scores.completeness, (output * (1 - error_share)).sum() / output.sum(), rtol=1e-9)


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_zero_error_scores_one(seed: int) -> None:
    """Where nothing is left unexplained, both scores are 1."""
    edges, _, weights = random_graph(seed, errors=False)
    influence, sums = compute_influence(edges, weights)
    scores = graph_scores(edges, influence, weights, sums)
    assert scores.replacement == pytest.approx(1)
    assert scores.completeness == pytest.approx(1)


def decided(values: np.ndarray, threshold: float) -> bool:
    """Tell whether rounding cannot decide where the share is reached: no cumulative share lies at the threshold."""
    ordered = np.sort(values[values > 0].ravel())[::-1]
    return bool(np.abs(np.cumsum(ordered) / ordered.sum() - threshold).min() > 1e-9)


@given(st.integers(0, 10**6), st.sampled_from([0.3, 0.8, 0.98, 1.0]), st.sampled_from([0.5, 0.9, 1.0]))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_pruning_equals_a_dense_one(seed: int, node_threshold: float, edge_threshold: float) -> None:
    """Nodes and edges kept are those of the published procedure on dense matrices."""
    edges, dense, weights = random_graph(seed)
    table = edges.table
    influence, _ = compute_influence(edges, weights)
    pruned = prune(edges, influence, weights, node_threshold=node_threshold, edge_threshold=edge_threshold)
    expected, _ = dense_influence(dense, weights)
    mask = np.ones(len(dense), bool)
    if expected.sum() > 0 and node_threshold < 1:
        assume(decided(expected, node_threshold))
        mask = expected >= dense_threshold(expected, node_threshold) * (1 - 1e-9)
    mask[table.token_start :] = True
    sub = dense * mask[:, None] * mask
    sub_influence, normal = dense_influence(sub, weights)
    sub_influence[table.logit_start :] += weights
    scores = normal * sub_influence[:, None]
    keep = sub != 0
    if scores.sum() > 0 and edge_threshold < 1:
        assume(decided(scores, edge_threshold))
        keep &= scores >= dense_threshold(scores, edge_threshold) * (1 - 1e-9)
    while True:
        before = mask.copy()
        mask[: table.token_start] &= keep.any(axis=0)[: table.token_start]
        mask[: table.num_features] &= keep.any(axis=1)[: table.num_features]
        keep &= mask[:, None] & mask
        if (mask == before).all():
            break
    np.testing.assert_array_equal(pruned.node_mask, mask)
    found = np.zeros_like(dense)
    found[pruned.targets, pruned.sources] = pruned.weights
    np.testing.assert_array_equal(found, np.where(keep, dense, 0))


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_limits_keep_the_most_influential(seed: int) -> None:
    """Of too many nodes and edges the largest stay, and the shares really held are told."""
    edges, _, weights = random_graph(seed)
    table = edges.table
    influence, _ = compute_influence(edges, weights)
    whole = prune(edges, influence, weights, node_threshold=1.0, edge_threshold=1.0)
    cut = prune(edges, influence, weights, node_threshold=1.0, edge_threshold=1.0, max_nodes=4, max_edges=6)
    assert cut.node_mask[: table.token_start].sum() <= 4
    assert len(cut.weights) <= 6
    best = set(np.argsort(-influence[: table.token_start])[:4].tolist())
    assert set(np.flatnonzero(cut.node_mask[: table.token_start]).tolist()) <= best
    assert whole.node_share == pytest.approx(1)
    assert cut.node_share <= whole.node_share
    assert 0 <= cut.edge_share <= whole.edge_share <= 1


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=4000), st.floats(0.01, 0.99))
@settings(max_examples=60, deadline=None)
def test_selected_threshold_keeps_the_share_and_no_more(values: list[float], share: float) -> None:
    """What is kept holds the share; without the smallest score kept it would not."""
    scores = np.array(values)
    threshold = share_threshold(scores, share)
    whole = scores.sum()
    assert scores[scores >= threshold].sum() >= share * whole * (1 - 1e-9)
    assert scores[scores > threshold].sum() <= share * whole * (1 + 1e-9)


def test_selection_of_many_scores_equals_a_sort() -> None:
    """Beyond the size at which partitions are taken the threshold is still the sorted one."""
    scores = np.random.default_rng(0).pareto(1.0, 50_000)
    for share in (0.1, 0.5, 0.9, 0.999):
        assert share_threshold(scores, share) == pytest.approx(dense_threshold(scores, share))


def test_large_weights_do_not_overflow() -> None:
    """Row sums beyond float32 stay finite."""
    edges, _, weights = random_graph(3)
    edges.values[:] = 3e38
    influence, sums = compute_influence(edges, weights)
    assert np.isfinite(influence).all()
    assert np.isfinite(sums).all()
    assert sums.max() > np.finfo(np.float32).max


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_block_size_changes_nothing(seed: int) -> None:
    """Influence is the same when rows are taken in very small blocks."""
    edges, _, weights = random_graph(seed)
    whole, _ = compute_influence(edges, weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK", 1)
        np.testing.assert_allclose(compute_influence(edges, weights)[0], whole, rtol=1e-12)


def test_cumulative_share_orders_nodes_by_influence() -> None:
    """The most influential node has the smallest share, and the last one has 1."""
    np.testing.assert_allclose(cumulative_share(np.array([1.0, 6.0, 3.0])), [1.0, 0.6, 0.9])
    assert cumulative_share(np.zeros(2)).tolist() == [1.0, 1.0]


@given(st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_prediction_is_the_linear_response(seed: int) -> None:
    """Direct and total predictions are the dense solves: relative changes through A, and through all powers of A."""
    edges, dense, _ = random_graph(seed)
    table = edges.table
    features = table.num_features
    rng = np.random.default_rng(seed)
    activation = rng.random(features) + 0.5
    delta = {int(node): float(rng.normal()) for node in rng.permutation(features)[:3]}
    direct, total = predict(edges, activation, delta)
    change = np.zeros(features)
    for node, amount in delta.items():
        change[node] = amount / activation[node]
    to_logits, among = dense[table.logit_start :, :features], dense[:features, :features] / activation[:, None]
    np.testing.assert_allclose(direct, to_logits @ change, rtol=1e-9, atol=1e-9)
    response = np.linalg.solve(np.eye(features) - among, change)
    np.testing.assert_allclose(total, to_logits @ response, rtol=1e-7, atol=1e-7 * np.abs(response).max(initial=1))
