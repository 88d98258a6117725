"""Encode with selection, top-k and the joining of lists, against dense float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.triton_lane.lane_cases import TYPES, active_of, random, shapes
from torch import Tensor

from weft_clt.kernels.reference import ReferenceKernels
from weft_clt.kernels.triton_encode import Encoder, Tile
from weft_clt.kernels.triton_kernels import TritonKernels
from weft_clt.kernels.triton_top_k import keep_largest

OURS, REFERENCE = TritonKernels(), ReferenceKernels()
SMALL = Tile(16, 32, 16, 4, 2)
every_type = pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES.keys())


def _dense(listed: tuple[Tensor, Tensor, Tensor], num_features: int) -> tuple[Tensor, Tensor]:
    """Scatter a list back; its order is checked on the way."""
    counts, feature, preact = listed
    token = torch.repeat_interleave(torch.arange(counts.shape[0]), counts.long())
    assert bool((torch.diff(token * num_features + feature) > 0).all()), "by token and, within it, ascending"
    shape = (counts.shape[0], num_features)
    values, present = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.bool)
    values[token, feature], present[token, feature] = preact.double(), True
    return values, present


@every_type
@settings(max_examples=6, deadline=None)
@given(
    num_tokens=st.integers(1, 35), num_features=st.integers(1, 50), d_model=st.sampled_from([1, 16, 31, 64]),
    seed=st.integers(0, 2**31), level=st.sampled_from([-9.0, 0.0, 1.0, 9.0]),
)  # fmt: skip
def test_encode_lists_what_is_above_its_bound(
    dtype: torch.dtype, num_tokens: int, num_features: int, d_model: int, seed: int, level: float
) -> None:
    """All, some or no entries; those within rounding of their bound (3e-5) may be on either side."""
    inputs, weight = random(dtype, seed, num_tokens, d_model), random(dtype, seed + 1, num_features, d_model)
    weight = (weight / d_model**0.5).to(dtype)
    bias, bound = random(dtype, seed + 2, num_features), random(torch.float32, seed + 3, num_features).abs() + level
    exact = inputs.double() @ weight.double().T + bias.double()
    kept = torch.empty(num_tokens, num_features, dtype=dtype)
    values, present = _dense(Encoder(SMALL).above(inputs, weight, bias, bound, kept), num_features)
    margin = exact - bound.double()
    assert bool((present == (margin > 0))[margin.abs() > 3e-5].all())
    tolerance = 2.0**-8 if dtype is torch.bfloat16 else 1e-5
    torch.testing.assert_close(values[present], exact[present], rtol=tolerance, atol=3e-5)
    torch.testing.assert_close(kept.double(), exact, rtol=tolerance, atol=3e-5)


@every_type
@pytest.mark.parametrize("top_k", [1, 5, 60])
def test_encode_lists_the_largest(dtype: torch.dtype, top_k: int) -> None:
    """The k largest above 0 of every token, over several slices of features and rows with fewer."""
    num_tokens, num_features, d_model = 5, 300, 24
    inputs, weight = random(dtype, 1, num_tokens, d_model), random(dtype, 2, num_features, d_model)
    bias = random(dtype, 3, num_features) - 5
    bias[-3:] = 30  # the last slice holds the best
    inputs[0] = 0  # only these are above 0
    exact = inputs.double() @ weight.double().T + bias.double()
    encoder = Encoder(Tile(16, 64, 16, 4, 2), first_slice=20)
    values, present = _dense(encoder.largest(inputs, weight, bias, top_k), num_features)
    best = torch.topk(exact, top_k, dim=1)
    wanted = torch.zeros_like(present).scatter_(1, best.indices, True) & (exact > 0)
    close_call = (exact - best.values[:, -1:]).abs() < 1e-4
    assert bool((present == wanted)[~close_call & (exact.abs() > 1e-4)].all())
    assert present.sum(1).tolist() == wanted.sum(1).tolist()
    torch.testing.assert_close(values[present], exact[present], rtol=2.0**-8, atol=1e-4)


def test_encode_grows_its_room() -> None:
    """A list longer than the first room is complete, and the same as with room from the start."""
    inputs, weight, bias = random(torch.float32, 1, 70, 16), random(torch.float32, 2, 96, 16), torch.full((96,), 50.0)
    encoder = Encoder(Tile(16, 32, 16, 4, 2))
    first = encoder.above(inputs, weight, bias, torch.zeros(96))
    second = encoder.above(inputs, weight, bias, torch.zeros(96))
    assert first[1].shape[0] == 70 * 96 > 1 << 12
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@settings(max_examples=8, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 300), min_size=1, max_size=2),
    top_k=st.integers(1, 40),
    seed=st.integers(0, 2**31),
    levels=st.sampled_from([2, 5, 1000]),
)
def test_largest_of_a_row_are_a_stable_sorts(lengths: list[int], top_k: int, seed: int, levels: int) -> None:
    """Ties, negative values and rows beyond one block: what a stable descending sort would keep."""
    starts = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    generator = torch.Generator().manual_seed(seed)
    value = torch.randint(-levels, levels, (int(starts[-1]),), generator=generator) / 7.0
    keep, smallest = keep_largest(starts, value, top_k)
    for row, (start, end) in enumerate(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)):
        part = value[start:end]
        order = torch.argsort(part, descending=True, stable=True)[:top_k]
        assert sorted(order.tolist()) == keep[start:end].nonzero().flatten().tolist()
        assert float(smallest[row]) == (float(part[order[-1]]) if part.shape[0] >= top_k else 0.0)


@settings(max_examples=10, deadline=None)
@given(shapes(), st.integers(1, 3), st.integers(0, 5))
def test_merge_agrees(case: tuple[int, int, int, int, float], num_ranks: int, top_k: int) -> None:
    """Joined lists have the reference's entries, values, slots and feature order, with and without a limit."""
    num_tokens, rank_features, _, seed, share = case
    counts, features, values, starts, place = [], [], [], [], 0
    for rank in range(num_ranks):
        active = active_of(torch.float32, num_tokens, rank_features, seed + 10 * rank, share)
        tokens = torch.repeat_interleave(torch.arange(num_tokens), active.row_start_T1.diff().long())
        order = torch.argsort(tokens * rank_features + active.feature_N, stable=True)
        if top_k:
            order = order[active.value_N[order] > 0]
        counts.append(torch.bincount(tokens[order], minlength=num_tokens).int())
        features.append(active.feature_N[order] + rank * rank_features)
        values.append(active.value_N[order])
        starts.append(place + 5 * rank)
        place += order.shape[0]
    num_features = num_ranks * rank_features
    ours, wanted = (
        kernels.merge(torch.stack(counts), features, values, starts, num_features=num_features, top_k=top_k)
        for kernels in (OURS, REFERENCE)
    )
    for name in ("row_start_T1", "row_active_T", "feature_N", "value_N", "slot_N"):
        torch.testing.assert_close(getattr(ours, name), getattr(wanted, name), rtol=0, atol=0, msg=name)
