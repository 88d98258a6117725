"""The passes over the decoder, the encoder's gradient and the norms, against float64, over ragged shapes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.triton_lane.lane_cases import TYPES, Case, active_of, assert_close, layers_of, random, shapes, wide
from torch import Tensor

from weft_clt.active import ActiveLayer
from weft_clt.kernels import DecoderPairs, FeatureLists
from weft_clt.kernels.reference import ReferenceKernels
from weft_clt.kernels.sorted_lists import by_feature
from weft_clt.kernels.triton_kernels import TritonKernels
from weft_clt.kernels.triton_numbers import rounded

OURS, REFERENCE = TritonKernels(), ReferenceKernels()
every_type = pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES.keys())
PAIRS = {1: [(0, 0)], 2: [(0, 0), (0, 1), (1, 1)], 3: [(0, 0), (0, 1), (1, 1), (1, 2), (2, 2)]}
"""All pairs; of three layers, a window of two."""


@every_type
@settings(max_examples=6, deadline=None)
@given(case=shapes(), num_layers=st.integers(1, 3))
def test_passes_over_the_decoder_agree(dtype: torch.dtype, case: Case, num_layers: int) -> None:
    """Errors, value gradients, the decoder's gradient and its norm are the reference's."""
    num_tokens, num_features, num_columns, seed, _ = case
    layers, slots = layers_of(dtype, case, num_layers)
    lists, exact_lists = FeatureLists.of(layers), FeatureLists.of([wide(layer) for layer in layers])
    pairs, matrix = DecoderPairs.of(num_layers, PAIRS[num_layers]), (num_layers, num_tokens, num_columns)
    targets, grad_out = random(dtype, seed + 3, *matrix), random(dtype, seed + 4, *matrix)
    bias, coeff = random(dtype, seed + 5, num_layers, num_columns), random(dtype, seed + 6, num_layers, num_features)
    coeff[:, ::2] = 0
    weight = random(dtype, seed + 7, len(PAIRS[num_layers]), num_features, num_columns)

    def passes(kernels: TritonKernels | ReferenceKernels, lists: FeatureLists, to: torch.dtype) -> list[Tensor]:
        w, error, grad = weight.to(to), torch.full(matrix, 7.0, dtype=to), torch.full(weight.shape, 7.0, dtype=to)
        fresh = torch.full_like(grad, torch.nan)
        grad_slots, grad_bias = torch.zeros(slots, dtype=to), torch.full((num_layers, num_columns), 7.0, dtype=to)
        kernels.decode_pass(lists, pairs, w, bias.to(to), targets.to(to), error)
        squares = kernels.value_grad_pass(lists, pairs, w, grad_out.to(to), grad_slots, grad_bias)
        above_slots, near = torch.zeros_like(grad_slots), torch.full((num_layers, num_features), 7.0, dtype=to)
        kernels.value_grad_pass(lists, pairs, w, grad_out.to(to), above_slots, grad_bias.clone(), near)
        kernels.decoder_gradient(lists, pairs, w, grad_out.to(to), coeff.to(to), grad)
        kernels.decoder_gradient(lists, pairs, w, grad_out.to(to), coeff.to(to), fresh, fresh=True)
        squares_ = torch.tensor(squares, dtype=torch.float64)
        return [error, grad, fresh, grad_bias, grad_slots, above_slots, near, squares_]

    ours, wanted = passes(OURS, lists, dtype), passes(REFERENCE, exact_lists, torch.float64)
    for mine, exact in zip(ours[:4], wanted[:4], strict=True):
        assert_close(mine, exact)
    # A value's gradient is a sum over up to 3 x 1,030 products.
    for mine, exact in zip(ours[4:6], wanted[4:6], strict=True):
        torch.testing.assert_close(mine.double(), exact, rtol=2.0**-8 if dtype is torch.bfloat16 else 2e-6, atol=5e-4)
    # A feature's sum has up to as many of these as there are tokens.
    torch.testing.assert_close(
        ours[6].double(), wanted[6], rtol=2.0**-8 if dtype is torch.bfloat16 else 2e-6, atol=2e-2
    )
    torch.testing.assert_close(ours[7], wanted[7], rtol=2e-6, atol=1e-9)


def test_decode_of_bfloat16_rows_into_float32_loses_nothing() -> None:
    """Types may be mixed."""
    case = (4, 9, 33, 1, 0.7)
    layers, _ = layers_of(torch.bfloat16, case, 2)
    pairs, weight = DecoderPairs.of(2, PAIRS[2]), random(torch.bfloat16, 2, 3, 9, 33)
    bias, targets = random(torch.float32, 3, 2, 33), random(torch.float32, 4, 2, 4, 33)
    error, exact = torch.empty(2, 4, 33), torch.empty(2, 4, 33, dtype=torch.float64)
    OURS.decode_pass(FeatureLists.of(layers), pairs, weight, bias, targets, error)
    REFERENCE.decode_pass(
        FeatureLists.of([wide(layer) for layer in layers]),
        pairs,
        weight.double(),
        bias.double(),
        targets.double(),
        exact,
    )
    assert_close(error, exact)


@every_type
@settings(max_examples=4, deadline=None)
@given(case=shapes())
def test_encoder_gradient_and_norms_agree(dtype: torch.dtype, case: Case) -> None:
    """The encoder's gradient, squared norms and sums of squares are the reference's."""
    num_tokens, num_features, num_columns, seed, share = case
    active = active_of(dtype, num_tokens, num_features, seed, share)
    inputs = random(dtype, seed + 1, num_tokens, num_columns)
    weight = random(dtype, seed + 2, num_features, num_columns)
    grad_preact, squares = random(dtype, seed + 3, active.value_N.shape[0]), random(torch.float32, seed, num_features)
    out, wanted, wanted_squares = weight.clone(), weight.double(), squares.double()
    counts, feature = active.row_start_T1.diff().int(), active.feature_N.long()
    OURS.encode_backward(counts, feature, grad_preact, inputs, out)
    OURS.add_row_squares(weight, squares)
    REFERENCE.encode_backward(counts, feature, grad_preact.double(), inputs.double(), wanted)
    REFERENCE.add_row_squares(weight.double(), wanted_squares)
    assert_close(out, wanted)
    torch.testing.assert_close(squares.double(), wanted_squares, rtol=1e-6, atol=1e-5)
    assert OURS.sum_squares(weight) == pytest.approx(float(weight.double().square().sum()), rel=1e-6)


@settings(max_examples=15, deadline=None)
@given(shapes())
def test_entries_by_feature_are_the_compiled_loops(case: Case) -> None:
    """Torch's sorts, which a device uses, give the lists that the CPU's loops give."""
    active = active_of(torch.float32, case[0], case[1], case[3], case[4])
    lists = FeatureLists.of([active])
    wanted = lists.start_LF1[0], lists.near_LF1[0], lists.token_N, lists.value_N, lists.slot_N
    for mine, theirs in zip(by_feature(active), wanted, strict=True):
        assert torch.equal(mine, theirs)


def test_addresses_pass_two_to_the_31() -> None:
    """The last rows of a decoder of 2.4 billion elements are found; only those few are ever touched in memory."""
    num_features, num_columns, few = 1_200_000, 2_000, 3
    near = active_of(torch.float32, 2, few, 5, 0.8)
    far = ActiveLayer(
        **{**near.__dict__, "num_features": num_features, "feature_N": near.feature_N + num_features - few}
    )
    weight = random(torch.bfloat16, 6, 1, few, num_columns)
    block = torch.empty(1, num_features, num_columns, dtype=torch.bfloat16)
    block[:, -few:] = weight
    pairs, zeros = DecoderPairs.of(1, [(0, 0)]), torch.zeros(1, 2, num_columns)
    results = []
    for active, decoder in ((near, weight), (far, block)):
        error = torch.empty(1, 2, num_columns)
        OURS.decode_pass(FeatureLists.of([active]), pairs, decoder, zeros[:, 0], zeros, error)
        results.append(error)
    assert results[0].any()
    assert torch.equal(results[0], results[1])


def test_rounding_to_bfloat16_is_torchs() -> None:
    """Ties go to even; the largest numbers become infinite; infinities and zeros stay."""
    import triton
    import triton.language as tl

    @triton.jit
    def rounding_kernel(values: tl.tensor, out: tl.tensor, BLOCK: tl.constexpr) -> None:
        place = tl.arange(0, BLOCK)
        tl.store(out + place, rounded(tl.load(values + place), out.dtype.element_ty))

    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 3.4028234e38, 1.0 + 2.0**-8, 1.0 + 3 * 2.0**-8, 1.99999])
    values = torch.cat([special, torch.randn(248) * torch.exp(8 * torch.randn(248))])
    out = torch.empty(256, dtype=torch.bfloat16)
    rounding_kernel[(1,)](values, out, BLOCK=256)
    assert torch.equal(out, values.bfloat16())
