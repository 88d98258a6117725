"""Decode, its backward pass, the encoder's gradient and the reductions, against float64, over ragged shapes."""

import pytest
import torch
from hypothesis import given, settings
from tests.triton_lane.lane_cases import TYPES, active_of, assert_close, random, shapes, wide

from weft_clt.active import ActiveLayer, active_from_dense
from weft_clt.kernels.reference import ReferenceKernels
from weft_clt.kernels.triton_kernels import TritonKernels
from weft_clt.kernels.triton_lists import IndexedLayer

OURS, REFERENCE = TritonKernels(), ReferenceKernels()
every_type = pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES.keys())


@every_type
@settings(max_examples=8, deadline=None)
@given(case=shapes())
def test_decode_and_its_backward_agree(dtype: torch.dtype, case: tuple[int, int, int, int, float]) -> None:
    """Outputs, value gradients and decoder gradients are the reference's, also where entries are only near."""
    num_tokens, num_features, num_columns, seed, share = case
    active = active_of(dtype, num_tokens, num_features, seed, share)
    weight, grad = random(dtype, seed + 2, num_features, num_columns), random(dtype, seed + 3, num_tokens, num_columns)
    out, values = random(dtype, seed + 4, num_tokens, num_columns), random(dtype, seed + 5, active.value_N.shape[0])
    out_64, values_64 = out.double(), values.double()
    grad_weight, grad_weight_64 = torch.full_like(weight, 7.0), weight.double()
    OURS.decode(active, weight, out)
    OURS.decode_backward(active, weight, grad, values, grad_weight)
    REFERENCE.decode(wide(active), weight.double(), out_64)
    REFERENCE.decode_backward(wide(active), weight.double(), grad.double(), values_64, grad_weight_64)
    assert_close(out, out_64)
    torch.testing.assert_close(values.double(), values_64, rtol=2.0**-8 if dtype is torch.bfloat16 else 2e-6, atol=2e-4)
    assert_close(grad_weight, grad_weight_64)


def test_decode_adds_bfloat16_rows_to_float32() -> None:
    """Types may be mixed: nothing is lost over the sources of a target."""
    active, weight = active_of(torch.bfloat16, 5, 9, 1, 0.7), random(torch.bfloat16, 2, 9, 33)
    out = random(torch.float32, 3, 5, 33)
    out_64 = out.double()
    OURS.decode(active, weight, out)
    REFERENCE.decode(wide(active), weight.double(), out_64)
    assert_close(out, out_64)


def test_decode_of_empty_and_full_rows_agrees() -> None:
    """Tokens without entries keep their output; rows with every feature active take several blocks of entries."""
    acts_TF = random(torch.float32, 7, 5, 53).abs()
    acts_TF[0] = acts_TF[3] = 0
    active, weight = active_from_dense(acts_TF), random(torch.float32, 8, 53, 40)
    out, values = random(torch.float32, 9, 5, 40), torch.zeros(3 * 53)
    before, grad = out.clone(), random(torch.float32, 10, 5, 40)
    OURS.decode(active, weight, out)
    assert torch.equal(out[[0, 3]], before[[0, 3]])
    torch.testing.assert_close(out, before + acts_TF @ weight, rtol=1e-4, atol=1e-4)
    grad_weight = torch.empty_like(weight)
    OURS.decode_backward(active, weight, grad, values, grad_weight)
    torch.testing.assert_close(values, (grad @ weight.T)[acts_TF > 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(grad_weight, acts_TF.T @ grad, rtol=1e-4, atol=1e-4)


def test_tokens_and_features_may_be_none() -> None:
    """A list without entries changes nothing and gives a decoder gradient of 0."""
    active = active_from_dense(torch.zeros(4, 6))
    weight, out, grad_weight = torch.ones(6, 20), torch.ones(4, 20), torch.full((6, 20), 3.0)
    OURS.decode(active, weight, out)
    OURS.decode_backward(active, weight, out, active.value_N.clone(), grad_weight)
    assert torch.equal(out, torch.ones(4, 20))
    assert not grad_weight.any()


@every_type
@settings(max_examples=5, deadline=None)
@given(case=shapes())
def test_encoder_gradient_and_row_sums_agree(dtype: torch.dtype, case: tuple[int, int, int, int, float]) -> None:
    """The encoder's gradient, squared norms, scaled rows and sums of squares are the reference's."""
    num_tokens, num_features, num_columns, seed, share = case
    active = active_of(dtype, num_tokens, num_features, seed, share)
    inputs = random(dtype, seed + 1, num_tokens, num_columns)
    weight = random(dtype, seed + 2, num_features, num_columns)
    grad_preact, coeff = random(dtype, seed + 3, active.value_N.shape[0]), random(dtype, seed + 4, num_features)
    out, squares, scaled = weight.clone(), coeff.float(), weight.clone()
    counts, feature = active.row_start_T1.diff().int(), active.feature_N.long()
    wanted, wanted_squares, wanted_scaled = weight.double(), coeff.double(), weight.double()
    OURS.encode_backward(counts, feature, grad_preact, inputs, out)
    OURS.add_row_squares(weight, squares)
    OURS.add_scaled_rows(coeff, weight, scaled)
    REFERENCE.encode_backward(counts, feature, grad_preact.double(), inputs.double(), wanted)
    REFERENCE.add_row_squares(weight.double(), wanted_squares)
    REFERENCE.add_scaled_rows(coeff.double(), weight.double(), wanted_scaled)
    assert_close(out, wanted)
    assert_close(squares, wanted_squares)
    assert_close(scaled, wanted_scaled)
    assert OURS.sum_squares(weight) == pytest.approx(float(weight.double().square().sum()), rel=1e-6)


@settings(max_examples=8, deadline=None)
@given(shapes())
def test_indices_by_feature_are_the_lists_own(case: tuple[int, int, int, int, float]) -> None:
    """Merged lists know where the entries by feature stand; they decode and derive like any other list."""
    num_tokens, num_features, _, seed, share = case
    active = active_of(torch.float32, num_tokens, num_features, seed, share)
    merged = OURS.merge(
        active.row_start_T1.diff().int()[None], [active.feature_N], [active.value_N], [0],
        num_features=num_features, top_k=0,
    )  # fmt: skip
    assert isinstance(merged, IndexedLayer)
    place = merged.column_entry_A.long()
    assert torch.equal(merged.value_N[place], merged.column_value_A)
    assert torch.equal(merged.feature_N[place], torch.sort(merged.feature_N[merged.value_N > 0], stable=True).values)


def _far(active: ActiveLayer, first: int, num_features: int) -> ActiveLayer:
    starts = torch.zeros(num_features + 1, dtype=torch.int32)
    starts[first : first + active.num_features + 1] = active.column_start_F1
    starts[first + active.num_features + 1 :] = active.column_start_F1[-1]
    changed = {"num_features": num_features, "feature_N": active.feature_N + first, "column_start_F1": starts}
    return ActiveLayer(**{**active.__dict__, **changed})


def test_offsets_pass_two_to_the_31() -> None:
    """The rows of a decoder block of 2.4 billion elements are found; only those few are ever touched in memory."""
    num_features, num_columns, few = 1_200_000, 2_000, 3
    active = active_of(torch.float32, 2, few, 5, 0.8)
    far = _far(active, num_features - few, num_features)
    block = torch.empty(num_features, num_columns, dtype=torch.bfloat16)
    weight = random(torch.bfloat16, 6, few, num_columns)
    block[-few:] = weight
    out, wanted = torch.zeros(2, num_columns), torch.zeros(2, num_columns)
    OURS.decode(far, block, out)
    OURS.decode(active, weight, wanted)
    assert wanted.any()
    assert torch.equal(out, wanted)
