"""Rank agreement against scipy, and predictions with layers that do not answer against dense solves."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_graphs import random_graph
from scipy.stats import spearmanr

from weft_attribution.core.interventions import predict, predict_rows
from weft_attribution.core.ranks import spearman


@given(st.lists(st.tuples(st.integers(-3, 3), st.floats(-1e3, 1e3)), max_size=30))
@settings(max_examples=100, deadline=None)
def test_rank_agreement_is_scipys(pairs: list[tuple[int, float]]) -> None:
    """Ties share their ranks' mean; where one side does not vary there is no agreement to tell."""
    first, other = [float(a) for a, _ in pairs], [b for _, b in pairs]
    found = spearman(first, other)
    if len(set(first)) < 2 or len(set(other)) < 2:
        assert found is None
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert found == pytest.approx(spearmanr(first, other).statistic, abs=1e-12)


@given(st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_prediction_with_held_layers_is_the_dense_solve(seed: int) -> None:
    """Features of held layers are moved but hand nothing on; with none held it is the prediction over all paths."""
    edges, dense, _ = random_graph(seed)
    table = edges.table
    features = table.num_features
    rng = np.random.default_rng(seed)
    activation = rng.random(features) + 0.5
    delta = {int(node): float(rng.normal()) for node in rng.permutation(features)[:3]}
    answers = rng.random(features) < 0.5
    found = predict_rows(edges, activation, delta, answers)
    change = np.zeros(features)
    for node, amount in delta.items():
        change[node] = amount / activation[node]
    among = dense[:features, :features]
    response = np.linalg.solve(np.eye(features) - np.where(answers[:, None], among, 0) / activation[:, None], change)
    size = 1e-7 * np.abs(response).max(initial=1) * np.abs(dense).max(initial=1)
    np.testing.assert_allclose(found[:features], among @ response, rtol=1e-6, atol=size)
    np.testing.assert_allclose(found[features:], dense[table.logit_start :, :features] @ response, rtol=1e-6, atol=size)
    _, total = predict(edges, activation, delta)
    np.testing.assert_allclose(predict_rows(edges, activation, delta, np.ones(features, bool))[features:], total)
