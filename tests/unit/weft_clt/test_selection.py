"""The largest of many, found by counting digits, against sorting."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from weft_clt.active import active_from_dense
from weft_clt.auxiliary import dead_candidates, stack_tokens
from weft_clt.selection import JointCandidates, batch_candidates, kth_largest, row_candidates


def _random(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(0, 60),
    st.integers(1, 5),
    st.integers(1, 20),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_kth_largest_is_what_sorting_finds(seed: int, count: int, groups: int, k: int, dtype: torch.dtype) -> None:
    """In every group and floating type, also with ties, and 0 where there are fewer than k."""
    value = _random(seed, count).abs().exp().to(dtype)
    group = torch.randint(0, groups, (count,), generator=torch.Generator().manual_seed(seed))
    found = kth_largest(value, group, k, num_groups=groups, sum_=lambda counts: counts)
    for each in range(groups):
        ordered = sorted(value[group == each].tolist(), reverse=True)
        assert float(found[each]) == (ordered[k - 1] if len(ordered) >= k else 0.0)


def test_kth_largest_counts_beyond_32_bits() -> None:
    """Sums over ranks and wanted counts are int64: each value is there 2^31 times, and the first after them wanted."""
    many = 1 << 31
    value, group = torch.tensor([3.0, 2.0, 1.0]), torch.zeros(3, dtype=torch.int64)
    for k, wanted in ((many, 3.0), (many + 1, 2.0), (3 * many, 1.0), (3 * many + 1, 0.0)):
        assert kth_largest(value, group, k, num_groups=1, sum_=lambda counts: counts * many).tolist() == [wanted]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 30), st.sampled_from([0.0, 0.3, 0.9, 50.0]))
def test_batch_candidates_do_not_depend_on_the_guess(seed: int, most: int, floor: float) -> None:
    """Whatever is looked at first, the list is the largest that are above 0."""
    preact = _random(seed, 6, 7)
    own, smallest = batch_candidates(preact, most, floor)
    ordered = sorted((value for value in preact.flatten().tolist() if value > 0), reverse=True)[:most]
    assert sorted(own.value_M.tolist(), reverse=True) == ordered
    assert smallest == (ordered[-1] if len(ordered) == most else 0.0)
    assert int(own.counts_T.sum()) == len(ordered)


def test_joint_candidates_hold_the_best_of_a_token_over_layers() -> None:
    """The lists of all layers together contain the largest scores, of which a norm is half."""
    preact_LTS, norms_LS = _random(1, 4, 5, 9), _random(2, 4, 9).abs()
    joint = JointCandidates.empty(5, 7, preact_LTS)
    lists = [joint.add(preact, norms) for preact, norms in zip(preact_LTS, norms_LS, strict=True)]
    listed = torch.zeros(4, 5, 9, dtype=torch.bool)
    for layer, own in enumerate(lists):
        token_M = torch.repeat_interleave(torch.arange(5), own.counts_T.long())
        listed[layer, token_M, own.feature_M] = True
    score_LTS = preact_LTS * norms_LS[:, None]
    for token in range(5):
        score = score_LTS[:, token].flatten()
        best = torch.topk(score, 7).indices
        assert listed[:, token].flatten()[best][score[best] > 0].all()
    assert int(listed.sum()) < 4 * 5 * 7


def test_joint_candidates_never_list_a_score_of_zero() -> None:
    """A decoder that is still 0 competes for nothing."""
    own = JointCandidates.empty(2, 3, torch.ones(1)).add(torch.ones(2, 4), torch.zeros(4))
    assert own.value_M.numel() == 0


def test_row_candidates_are_positive() -> None:
    """A token with fewer positive pre-activations than k lists only those."""
    own = row_candidates(torch.tensor([[-1.0, 2.0, -3.0], [1.0, 2.0, 3.0]]), 2)
    assert own.counts_T.tolist() == [1, 2]
    assert own.feature_M.tolist() == [1, 1, 2]


@pytest.mark.parametrize("dead", [[], [0, 3, 4]])
def test_dead_candidates_are_dead(dead: list[int]) -> None:
    """Only dead features are listed, by their own indices."""
    preact = _random(3, 6, 5)
    dead_S = torch.zeros(5, dtype=torch.bool)
    dead_S[dead] = True
    own = dead_candidates(preact, dead_S, 2)
    assert set(own.feature_M.tolist()) <= set(dead)
    wanted = torch.relu(preact[:, dead]).sort(1, descending=True).values[:, :2]
    assert float(own.value_M.sum()) == pytest.approx(float(wanted.sum()))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.0, 0.4, 1.0]), st.sampled_from([0.0, 0.4, 1.0]))
def test_stacked_batches_list_what_one_dense_matrix_would(seed: int, first: float, second: float) -> None:
    """Two lists one behind the other are that of the stacked matrix."""
    parts = []
    for index, share in enumerate((first, second)):
        acts = _random(seed + index, 3, 6).abs()
        keep = torch.rand(3, 6, generator=torch.Generator().manual_seed(seed + 9 + index))
        parts.append((acts * (keep < share), keep < (share + 1) / 2))
    stacked = stack_tokens(*(active_from_dense(*part) for part in parts))
    wanted = active_from_dense(torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]))
    for name in ("row_start_T1", "row_active_T", "feature_N", "value_N"):
        assert torch.equal(getattr(stacked, name), getattr(wanted, name)), name
