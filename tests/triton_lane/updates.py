"""Adam, its rounding, and the update fused with the decoder's gradient."""

import pytest
import torch
from hypothesis import given, settings
from tests.triton_lane.lane_cases import Case, layers_of, random, shapes

from weft_clt.kernels import AdamStep, DecoderPairs, FeatureLists
from weft_clt.kernels.reference import ReferenceKernels
from weft_clt.kernels.triton_kernels import TritonKernels

OURS = TritonKernels()


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_adam_is_torchs(beta1: float) -> None:
    """Four updates in float32 are those of torch.optim.Adam, over more than one block."""
    start = random(torch.float32, 1, 1100)
    wanted = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([wanted], lr=0.01, betas=(beta1, 0.95), eps=1e-8)
    param, first, second = start.clone(), torch.zeros_like(start) if beta1 else None, torch.zeros_like(start)
    for step in range(1, 5):
        grad = random(torch.float32, step, 1100)
        wanted.grad = grad * 0.25
        optimizer.step()
        OURS.adam(param, grad, first, second, AdamStep(0.01, beta1, 0.95, 1e-8, step, 0.25))
    torch.testing.assert_close(param, wanted.detach(), rtol=1e-5, atol=1e-5)


def test_small_updates_of_bfloat16_parameters_are_kept_in_the_mean() -> None:
    """Steps of a hundredth of the last place move 10,000 parameters by their sum, within 4 standard errors."""
    count, rate, steps = 10_000, 2.0**-7 / 100, 10
    param = torch.ones(count, dtype=torch.bfloat16)
    second = torch.zeros(count)
    for step in range(1, steps + 1):
        OURS.adam(param, torch.full((count,), -1.0), None, second, AdamStep(rate, 0.0, 0.9, 1e-12, step, 1.0))
    moved = param.double() - 1
    assert set((moved * 2**7).unique().tolist()) <= {0.0, 1.0, 2.0, 3.0}
    expected = rate * steps
    error = float(moved.std()) / count**0.5
    assert abs(float(moved.mean()) - expected) < 4 * error
    assert error < expected / 10


def test_rounding_of_bfloat16_takes_a_neighbour_and_depends_on_the_step_alone() -> None:
    """Every updated parameter and moment is one of the two values around the exact one; a repetition is the same."""
    param, grad = random(torch.bfloat16, 1, 3000), random(torch.float32, 2, 3000)
    step = AdamStep(0.01, 0.9, 0.99, 1e-8, 3, 0.5)
    exact = [param.double(), torch.zeros(3000, dtype=torch.float64), torch.zeros(3000, dtype=torch.float64)]
    ReferenceKernels().adam(exact[0], grad.double(), exact[1], exact[2], step)
    runs = []
    for _ in range(2):
        state = [param.clone(), torch.zeros(3000, dtype=torch.bfloat16), torch.zeros(3000, dtype=torch.bfloat16)]
        OURS.adam(state[0], grad, state[1], state[2], step)
        runs.append(state)
    for ours, wanted, again in zip(runs[0], exact, runs[1], strict=True):
        assert torch.equal(ours, again)
        spacing = torch.exp2(torch.floor(torch.log2(wanted.abs().clamp(min=1e-30))) - 7)
        error = ours.double() - wanted
        assert bool((error.abs() <= spacing * 1.001).all())
        assert abs(float((error / spacing).mean())) < 0.05


@pytest.mark.parametrize("has_first", [False, True])
@settings(max_examples=3, deadline=None)
@given(case=shapes())
def test_fused_update_is_gradient_then_adam(has_first: bool, case: Case) -> None:
    """In one pass or in two, the same parameters and moments, which bfloat16 rounds alike; also without any entries."""
    num_tokens, num_features, num_columns, seed, _ = case
    layers, _ = layers_of(torch.bfloat16, case, 2)
    lists, pairs = FeatureLists.of(layers), DecoderPairs.of(2, [(0, 0), (0, 1), (1, 1)])
    shape = (3, num_features, num_columns)
    weight, grad_out = (
        random(torch.bfloat16, seed + 2, *shape),
        random(torch.bfloat16, seed, 2, num_tokens, num_columns),
    )
    coeff = random(torch.float32, seed + 4, 2, num_features)
    coeff[:, ::2] = 0
    first = random(torch.float32, seed + 5, *shape) if has_first else None
    second = random(torch.float32, seed + 6, *shape).square()
    step = AdamStep(0.01, 0.9 if has_first else 0.0, 0.99, 1e-8, 2, 0.5)
    grad = torch.zeros(shape)
    OURS.decoder_gradient(lists, pairs, weight, grad_out, coeff, grad)
    plain = [weight.clone(), None if first is None else first.clone(), second.clone()]
    OURS.adam(plain[0], grad, plain[1], plain[2], step)
    OURS.decoder_adam(lists, pairs, weight, grad_out, coeff, first, second, step)
    assert torch.equal(weight, plain[0])
    assert torch.equal(second, plain[2])
    if first is not None:
        assert torch.equal(first, plain[1])


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_rounding_is_that_of_the_other_kernels(beta1: float) -> None:
    """Weights and moments beside a float32 gradient have the reference's bits, but for few at a value's edge."""
    shape, step = (2, 37, 130), AdamStep(0.01, beta1, 0.99, 1e-8, 5, 0.5)
    results = []
    for kernels in (OURS, ReferenceKernels()):
        states = [random(torch.bfloat16, seed, *shape).square() for seed in (1, 2, 3)]
        for block in range(2):
            weight, first, second = (state[block] for state in states)
            kernels.adam(weight, random(torch.float32, 4 + block, *shape[1:]), first if beta1 else None, second, step)
        results.append(states)
    for mine, theirs in zip(*results, strict=True):
        assert float((mine != theirs).double().mean()) < 0.005
        torch.testing.assert_close(mine, theirs, rtol=2.0**-7, atol=0)
