"""The compiled kernels against the plain ones, over ragged shapes."""

from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from weft_clt.active import ActiveLayer, active_from_dense
from weft_clt.kernels import AdamStep, CpuKernels, DecoderPairs, FeatureLists, ReferenceKernels

CPU, REFERENCE = CpuKernels(), ReferenceKernels()
CLOSE = {"rtol": 1e-11, "atol": 1e-12}


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int, int, int, float]:
    """Tokens, features, columns (also beyond one strip), a seed and a share of active entries."""
    return (
        draw(st.integers(1, 9)),
        draw(st.integers(1, 13)),
        draw(st.sampled_from([1, 2, 7, 31, 144, 145, 300])),
        draw(st.integers(0, 2**31)),
        draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])),
    )


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _active(num_tokens: int, num_features: int, seed: int, share: float) -> ActiveLayer:
    """Entries above 0 and, among the rest, some that are listed with 0."""
    uniform = torch.rand(num_tokens, num_features, generator=torch.Generator().manual_seed(seed + 1))
    acts_TF = _random(seed, num_tokens, num_features).abs() * (uniform < share)
    return active_from_dense(acts_TF, uniform < (share + 1) / 2)


@settings(max_examples=60, deadline=None)
@given(shapes(), st.integers(1, 3), st.sampled_from([0.0, 0.9]), st.sampled_from([1, 2]))
def test_passes_over_the_decoder_agree(
    case: tuple[int, int, int, int, float], num_layers: int, beta1: float, num_threads: int
) -> None:
    """Errors, value gradients, the decoder's gradient, its norm and its update are the reference's."""
    num_tokens, num_features, num_columns, seed, share = case
    blocks = [(source, target) for source in range(num_layers) for target in range(source, num_layers)]
    pairs = DecoderPairs.of(num_layers, blocks)
    layers, slots = [], 0
    for layer in range(num_layers):
        active = _active(num_tokens, num_features, seed + 20 * layer, share)
        layers.append(replace(active, slot_N=active.slot_N + slots))
        slots += active.slot_N.shape[0] + 2
    lists = FeatureLists.of(layers)
    matrix = (num_layers, num_tokens, num_columns)
    targets, grad_out = _random(seed + 3, *matrix), _random(seed + 4, *matrix)
    bias, coeff = _random(seed + 5, num_layers, num_columns), _random(seed + 6, num_layers, num_features)
    weight = _random(seed + 7, len(blocks), num_features, num_columns)
    results = []
    for kernels in (CpuKernels(num_threads), REFERENCE):
        error, grad_bias, grad_slots = torch.empty(matrix).double(), bias.clone(), torch.zeros(slots).double()
        gradient, param, second = torch.full_like(weight, 7.0), weight.clone(), weight.square()
        first = _random(seed + 8, *weight.shape) if beta1 else None
        kernels.decode_pass(lists, pairs, weight, bias, targets, error)
        squares = kernels.value_grad_pass(lists, pairs, weight, grad_out, grad_slots, grad_bias)
        above_slots, near = torch.zeros(slots).double(), torch.full((num_layers, num_features), 7.0).double()
        again = kernels.value_grad_pass(lists, pairs, weight, grad_out, above_slots, grad_bias.clone(), near)
        assert again == pytest.approx(squares, rel=1e-12)
        kernels.decoder_gradient(lists, pairs, weight, grad_out, coeff, gradient)
        fresh = torch.full_like(weight, torch.nan)
        kernels.decoder_gradient(lists, pairs, weight, grad_out, coeff, fresh, fresh=True)
        adam = AdamStep(0.01, beta1, 0.95, 1e-8, 3, 0.5)
        kernels.decoder_adam(lists, pairs, param, grad_out, coeff, first, second, adam)
        results.append(
            [error, grad_slots, grad_bias, gradient, fresh, param, second, torch.tensor(squares, dtype=torch.float64)]
            + [above_slots, near]
            + ([first] if first is not None else [])
        )
    torch.testing.assert_close(results[0], results[1], **CLOSE)
    # Together they are what one list of all entries has.
    summed = torch.zeros(num_layers, num_features).double()
    for index, layer in enumerate(layers):
        at_slots = (grad_slots - above_slots)[layer.slot_N.long()]
        summed[index].index_add_(0, layer.feature_N.long(), at_slots)
        assert not at_slots[layer.value_N > 0].any()
        assert not above_slots[layer.slot_N.long()][layer.value_N <= 0].any()
    torch.testing.assert_close(near, summed, **CLOSE)


@settings(max_examples=60, deadline=None)
@given(shapes(), st.integers(1, 20), st.booleans())
def test_encode_lists_the_same_entries(case: tuple[int, int, int, int, float], top_k: int, ties: bool) -> None:
    """Both selections list the reference's entries, also where pre-activations are equal."""
    num_tokens, num_features, num_columns, seed, _ = case
    inputs, weight = _random(seed, num_tokens, num_columns), _random(seed + 1, num_features, num_columns)
    bias = _random(seed + 2, num_features)
    if ties:
        inputs, weight, bias = inputs.round(), weight.round(), bias.round()
    for bound in (None, _random(seed + 3, num_features).abs()):
        kept = torch.empty(num_tokens, num_features, dtype=torch.float64)
        mine = CPU.encode(inputs, weight, bias, bound, top_k, kept)
        wanted = REFERENCE.encode(inputs, weight, bias, bound, top_k)
        torch.testing.assert_close(mine, wanted, **CLOSE)
        torch.testing.assert_close(CPU.encode(inputs, weight, bias, bound, top_k), mine, **CLOSE)
        torch.testing.assert_close(kept, inputs @ weight.T + bias, **CLOSE)


def test_encode_makes_room_for_many_entries() -> None:
    """A bound that nearly all features pass lists them all, over several chunks of tokens."""
    inputs, weight = _random(1, 700, 3), _random(2, 90, 3)
    bound = torch.full((90,), -50.0, dtype=torch.float64)
    counts, feature, value = CPU.encode(inputs, weight, torch.zeros(90, dtype=torch.float64), bound, 0)
    assert counts.tolist() == [90] * 700
    assert feature.tolist() == list(range(90)) * 700
    torch.testing.assert_close(value.view(700, 90), inputs @ weight.T, **CLOSE)


@settings(max_examples=60, deadline=None)
@given(shapes(), st.integers(1, 3), st.integers(0, 5))
def test_merge_agrees(case: tuple[int, int, int, int, float], num_ranks: int, top_k: int) -> None:
    """Joined lists have the same entries, values, slots and feature order, with and without a limit."""
    num_tokens, rank_features, _, seed, share = case
    counts, features, values, starts, place = [], [], [], [], 0
    for rank in range(num_ranks):
        active = _active(num_tokens, rank_features, seed + 10 * rank, share)
        dense = torch.zeros(num_tokens, rank_features, dtype=torch.float64)
        listed = torch.zeros(num_tokens, rank_features, dtype=torch.bool)
        tokens = torch.repeat_interleave(torch.arange(num_tokens), active.row_start_T1.diff().long())
        dense[tokens, active.feature_N.long()] = active.value_N
        listed[tokens, active.feature_N.long()] = True
        if top_k:
            listed &= dense > 0
        _, feature = torch.nonzero(listed, as_tuple=True)
        counts.append(listed.sum(1, dtype=torch.int32))
        features.append((feature + rank * rank_features).int())
        values.append(dense[listed])
        starts.append(place + 5 * rank)
        place += feature.shape[0]
    num_features = num_ranks * rank_features
    merged = [
        kernels.merge(torch.stack(counts), features, values, starts, num_features=num_features, top_k=top_k)
        for kernels in (CPU, REFERENCE)
    ]
    for name in ("row_start_T1", "row_active_T"):
        torch.testing.assert_close(getattr(merged[0], name), getattr(merged[1], name), rtol=0, atol=0)
    entries = [
        sorted(
            zip(
                torch.repeat_interleave(torch.arange(num_tokens), each.row_start_T1.diff().long()).tolist(),
                each.feature_N.tolist(),
                each.value_N.tolist(),
                each.slot_N.tolist(),
                strict=True,
            )
        )
        for each in merged
    ]
    assert entries[0] == entries[1]
    if top_k:
        assert int(merged[0].row_start_T1.diff().max()) <= top_k


@settings(max_examples=40, deadline=None)
@given(shapes())
def test_encoder_gradient_and_row_sums_agree(case: tuple[int, int, int, int, float]) -> None:
    """The encoder's gradient, squared norms and sums of squares are the reference's."""
    num_tokens, num_features, num_columns, seed, share = case
    active = _active(num_tokens, num_features, seed, share)
    inputs, weight = _random(seed + 1, num_tokens, num_columns), _random(seed + 2, num_features, num_columns)
    grad_preact, start = _random(seed + 3, active.value_N.shape[0]), _random(seed + 4, num_features)
    results = []
    for kernels in (CPU, REFERENCE):
        out, squares = weight.clone(), start.clone()
        counts = active.row_start_T1.diff().int()
        kernels.encode_backward(counts, active.feature_N.long(), grad_preact, inputs, out)
        kernels.add_row_squares(weight, squares)
        results.append((out, squares, torch.tensor(kernels.sum_squares(weight))))
    torch.testing.assert_close(results[0], results[1], **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_adam_is_torchs(dtype: torch.dtype, beta1: float) -> None:
    """Ten updates of both kernels are those of torch.optim.Adam."""
    start = _random(1, 40).to(dtype)
    wanted = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([wanted], lr=0.01, betas=(beta1, 0.95), eps=1e-8)
    mine = [(start.clone(), torch.zeros_like(start) if beta1 else None, torch.zeros_like(start)) for _ in range(2)]
    for step in range(1, 11):
        grad = _random(step, 40).to(dtype)
        wanted.grad = grad * 0.25
        optimizer.step()
        adam = AdamStep(0.01, beta1, 0.95, 1e-8, step, 0.25)
        for kernels, (param, first, second) in zip((CPU, REFERENCE), mine, strict=True):
            kernels.adam(param, grad, first, second, adam)
    tolerance = 1e-5 if dtype is torch.float32 else 1e-12
    for param, _, _ in mine:
        torch.testing.assert_close(param, wanted.detach(), rtol=tolerance, atol=tolerance)
