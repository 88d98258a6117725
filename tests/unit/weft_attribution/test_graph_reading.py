"""Scores of parts, paths, groups and flows on random graphs, against dense matrices, networkx and scipy."""

from itertools import islice, pairwise

import networkx as nx
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from random_graphs import Dense, dense_influence, random_graph
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from weft_attribution.core.grouping import average_linkage, cosines
from weft_attribution.core.influence import compute_influence, graph_scores
from weft_attribution.core.paths import strongest_paths
from weft_attribution.core.subgraphs import score_subgraph
from weft_attribution.core.supernodes import choose_features, flows, group_nodes, positions_in_graph, similarity

SEEDS = st.integers(0, 10**6)


def dense_scores(dense: Dense, weights: Dense, lost: np.ndarray, tokens: slice) -> tuple[float, float]:
    """Replacement and completeness by the matrix inverse, where the nodes of a mask are errors: they have no inputs."""
    dense = np.where(lost[:, None], 0.0, dense)
    influence, normal = dense_influence(dense, weights)
    output = influence.copy()
    output[len(dense) - len(weights) :] += weights
    explained, rest = influence[tokens].sum(), influence[lost].sum()
    share = normal[:, lost].sum(axis=1)
    return (
        explained / (explained + rest) if explained + rest > 0 else 1.0,
        (output * (1 - share)).sum() / output.sum(),
    )


@given(SEEDS, st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_part_is_scored_as_a_graph_whose_other_features_are_errors(seed: int, pinned_share: float) -> None:
    """Scores of any part are those of the dense matrix whose other features have lost their inputs."""
    edges, dense, weights = random_graph(seed)
    table = edges.table
    influence, _ = compute_influence(edges, weights)
    rng = np.random.default_rng(seed)
    pinned = np.flatnonzero(rng.random(table.num_nodes) < pinned_share)
    found = score_subgraph(edges, influence, weights, pinned)
    lost = np.zeros(len(dense), dtype=bool)
    lost[: table.token_start] = True
    lost[pinned[pinned < table.num_features]] = False
    replacement, completeness = dense_scores(dense, weights, lost, slice(table.token_start, table.logit_start))
    np.testing.assert_allclose(found.scores.replacement, replacement, rtol=1e-9)
    np.testing.assert_allclose(found.scores.completeness, completeness, rtol=1e-9)
    assert found.num_features == (pinned < table.num_features).sum()


@given(SEEDS)
@settings(max_examples=40, deadline=None)
def test_part_of_all_features_scores_as_the_whole_and_more_never_score_less(seed: int) -> None:
    """All features give the whole graph's scores; each feature taken in leaves the replacement score or raises it."""
    edges, _, weights = random_graph(seed)
    influence, sums = compute_influence(edges, weights)
    everything = np.arange(edges.table.num_features)
    whole = graph_scores(edges, influence, weights, sums)
    found = score_subgraph(edges, influence, weights, everything)
    assert found.scores.replacement == pytest.approx(whole.replacement)
    assert found.scores.completeness == pytest.approx(whole.completeness)
    assert found.influence_share == pytest.approx(1)
    order = np.random.default_rng(seed).permutation(everything)
    scores = [
        score_subgraph(edges, influence, weights, order[:count]).scores.replacement for count in range(len(order) + 1)
    ]
    assert all(after >= before - 1e-12 for before, after in pairwise(scores))


@given(SEEDS, st.integers(1, 12))
@settings(max_examples=80, deadline=None)
def test_strongest_paths_are_those_of_networkx(seed: int, count: int) -> None:
    """Strengths of the k strongest paths are Yen's over -log shares; their nodes are edges; all paths add up."""
    edges, dense, weights = random_graph(seed)
    table = edges.table
    _, sums = compute_influence(edges, weights)
    _, normal = dense_influence(dense, weights)
    rng = np.random.default_rng(seed)
    source = int(rng.integers(table.logit_start))
    targets = [*range(table.num_features), *range(table.logit_start, table.num_nodes)]
    target = int(rng.choice(targets))
    assume(source != target)
    found = strongest_paths(edges, sums, source, target, count=count)
    graph = nx.DiGraph()
    graph.add_nodes_from(range(len(dense)))
    graph.add_weighted_edges_from((int(s), int(t), -np.log(normal[t, s])) for t, s in np.argwhere(normal > 0))
    expected = []
    if nx.has_path(graph, source, target):
        for path in islice(nx.shortest_simple_paths(graph, source, target, weight="weight"), count):
            expected.append(np.prod([normal[t, s] for s, t in pairwise(path)]))
    np.testing.assert_allclose([path.strength for path in found.paths], expected, rtol=1e-9)
    assert len({path.nodes for path in found.paths}) == len(found.paths)
    for path in found.paths:
        assert (path.nodes[0], path.nodes[-1]) == (source, target)
        np.testing.assert_allclose(path.weights, [dense[t, s] for s, t in pairwise(path.nodes)], rtol=1e-6)
    everything = np.linalg.inv(np.eye(len(dense)) - normal)[target, source]
    np.testing.assert_allclose(found.total, everything, rtol=1e-9, atol=1e-15)


@given(SEEDS, st.integers(2, 40), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_groups_are_those_of_scipy(seed: int, count: int, groups: int) -> None:
    """Average linkage cut at k groups is scipy's, where no two distances are equal."""
    rng = np.random.default_rng(seed)
    distance = rng.random((count, count))
    distance = (distance + distance.T) / 2
    np.fill_diagonal(distance, 0)
    found = average_linkage(distance, groups)
    expected = fcluster(linkage(squareform(distance), "average"), groups, "maxclust")
    assert found.max() + 1 == min(groups, count)
    assert len(set(zip(found.tolist(), expected.tolist(), strict=True))) == found.max() + 1


def test_groups_of_equal_distances_end() -> None:
    """Items that are all alike still fall into as many groups as were asked for."""
    assert sorted(set(average_linkage(np.zeros((9, 9)), 3).tolist())) == [0, 1, 2]
    assert average_linkage(np.zeros((1, 1)), 3).tolist() == [0]


@given(SEEDS, st.integers(1, 5))
@settings(max_examples=50, deadline=None)
def test_flows_add_up_to_influence(seed: int, max_groups: int) -> None:
    """Every node is in one group; flows are blocks of the dense scores, and those out of a group are its influence."""
    edges, dense, weights = random_graph(seed)
    table = edges.table
    influence, sums = compute_influence(edges, weights)
    features = choose_features(influence, table.num_features, 0.8)
    written = np.random.default_rng(seed).normal(size=(len(features), 5))
    place = positions_in_graph(edges, sums, influence, weights, features)
    groups = group_nodes(edges, influence, features, similarity(written, place), max_groups)
    members = np.concatenate([group.nodes for group in groups])
    assert sorted(members.tolist()) == list(range(table.num_nodes))
    assert sum(group.kind == "features" for group in groups) == min(max_groups, len(features))
    flow, net = flows(edges, sums, influence, weights, groups)
    np.testing.assert_allclose(flow.sum(axis=1), [influence[group.nodes].sum() for group in groups], atol=1e-12)
    assert (np.abs(net) <= flow + 1e-12).all()
    expected, normal = dense_influence(dense, weights)
    output = expected.copy()
    output[table.logit_start :] += weights
    scores = normal * output[:, None]
    signed = np.sign(dense) * scores
    for into, targets in enumerate(groups):
        for out, sources in enumerate(groups):
            block = np.ix_(targets.nodes, sources.nodes)
            np.testing.assert_allclose(flow[out, into], scores[block].sum(), rtol=1e-7, atol=1e-12)
            np.testing.assert_allclose(net[out, into], signed[block].sum(), rtol=1e-6, atol=1e-10)


@given(SEEDS)
@settings(max_examples=30, deadline=None)
def test_position_in_graph_is_inputs_and_what_is_fed(seed: int) -> None:
    """A feature's place is its row of shares, then its column of scores over their sum."""
    edges, dense, weights = random_graph(seed)
    table = edges.table
    influence, sums = compute_influence(edges, weights)
    features = choose_features(influence, table.num_features, 0.7)
    found = positions_in_graph(edges, sums, influence, weights, features)
    _, normal = dense_influence(dense, weights)
    output = influence.copy()
    output[table.logit_start :] += weights
    seen = np.concatenate([features, np.arange(table.token_start, table.logit_start)])
    feeding = np.concatenate([features, np.arange(table.logit_start, table.num_nodes)])
    for place, node in enumerate(features):
        fed = normal[feeding, node] * output[feeding]
        fed = fed / fed.sum() if fed.sum() > 0 else fed
        np.testing.assert_allclose(found[place], np.concatenate([normal[node, seen], fed]), atol=1e-9)


def test_features_are_chosen_by_the_share_they_hold() -> None:
    """As few features as hold the share, in order, none without influence."""
    influence = np.array([0.1, 5.0, 0.0, 4.0, 0.9, 7.0])
    assert choose_features(influence, 5, 0.85).tolist() == [1, 3]
    assert choose_features(influence, 5, 1.0).tolist() == [0, 1, 3, 4]
    assert choose_features(np.zeros(3), 3, 0.8).tolist() == []


def test_opposite_and_empty_vectors_are_not_alike() -> None:
    """Similarity counts what points the same way: opposite ones are 0, and so is what is all zero."""
    vectors = np.array([[1.0, 0], [-2, 0], [0, 0], [3, 0]])
    assert similarity(vectors, None).tolist() == [[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 1]]
    assert cosines(vectors)[0, 1] == -1
