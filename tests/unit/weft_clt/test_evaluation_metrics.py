"""What an evaluation counts, against dense NumPy."""

import numpy as np
import pytest
import torch
from clt_cases import D_MODEL, NUM_FEATURES, NUM_LAYERS

from weft_clt.active import active_from_dense
from weft_clt.exchange import Exchanged
from weft_clt.mesh import Mesh, SingleAxis
from weft_clt.metrics import DENSITY_EDGES_LOG10, Evaluation, ReconstructionSums
from weft_clt.parameters import Shape, Share

NUM_BINS = len(DENSITY_EDGES_LOG10) - 1


def _evaluation(passes: list[tuple[torch.Tensor, torch.Tensor | None]]) -> Evaluation:
    """Add up passes of dense activations [L, T, F]; errors and targets are noise."""
    random = np.random.default_rng(2)
    share = Share(Shape(NUM_LAYERS, NUM_FEATURES, D_MODEL), 0, 1)
    sums = ReconstructionSums(share, torch.zeros(NUM_LAYERS, D_MODEL, dtype=torch.float64))
    for acts_LTF, valid_T in passes:
        error_LTD, targets_LTD = torch.from_numpy(random.standard_normal((2, NUM_LAYERS, acts_LTF.shape[1], D_MODEL)))
        exchanged = Exchanged([active_from_dense(acts_TF) for acts_TF in acts_LTF], [], [])
        sums.add(error_LTD, targets_LTD, exchanged, valid_T)
    return sums.reduced(Mesh(SingleAxis(), SingleAxis())).evaluation(7)


def test_evaluation_counts_features_as_dense_arrays_do() -> None:
    """Silent and dense shares, L0 and the histogram agree with NumPy over two passes, of which one is half filler."""
    random = np.random.default_rng(1)
    rates_F = np.geomspace(1e-3, 0.8, NUM_FEATURES)
    dense = [
        np.where(random.random((NUM_LAYERS, num_tokens, NUM_FEATURES)) < rates_F, random.random(NUM_FEATURES) + 0.1, 0)
        for num_tokens in (96, 64)
    ]
    valid_T = torch.arange(64) < 33
    found = _evaluation([(torch.from_numpy(dense[0]), None), (torch.from_numpy(dense[1]), valid_T)])

    kept_LTF = np.concatenate([dense[0], dense[1][:, :33]], axis=1)
    density_LF = (kept_LTF > 0).mean(1)
    assert found.tokens == 129
    assert found.l0_by_layer == pytest.approx((kept_LTF > 0).sum(2).mean(1))
    assert found.silent_share_by_layer == pytest.approx((density_LF == 0).mean(1))
    assert found.silent_share == pytest.approx((density_LF == 0).mean())
    assert 0 < found.silent_share < 1
    assert found.dense_share_by_layer == pytest.approx((density_LF > 0.1).mean(1))
    assert found.dense_share == pytest.approx((density_LF > 0.1).mean())
    for layer, density_F in enumerate(density_LF):
        wanted, _ = np.histogram(np.log10(density_F[density_F > 0]), np.array(DENSITY_EDGES_LOG10))
        assert found.density_counts_by_layer[layer * NUM_BINS : (layer + 1) * NUM_BINS] == wanted.tolist()


def test_density_of_a_tenth_is_not_dense_and_opens_its_bin() -> None:
    """A feature on one token of ten lies at the edge log10 = -1, and one on all tokens in the last bin."""
    acts_LTF = torch.zeros(NUM_LAYERS, 10, NUM_FEATURES, dtype=torch.float64)
    acts_LTF[:, 0, 0] = 1.0
    acts_LTF[:, :, 1] = 1.0
    found = _evaluation([(acts_LTF, None)])
    assert found.dense_share == pytest.approx(1 / NUM_FEATURES)
    first = found.density_counts_by_layer[:NUM_BINS]
    assert {place: count for place, count in enumerate(first) if count} == {
        DENSITY_EDGES_LOG10.index(-1.0): 1,
        NUM_BINS - 1: 1,
    }
