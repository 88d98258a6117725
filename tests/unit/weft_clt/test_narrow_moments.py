"""Adam's moments in bfloat16, rounded at random: beside the exact ones, right in the mean, good enough to learn."""

from typing import Any

import pytest
import torch
from clt_cases import RECIPES, config_of, own_batch, trainer_of
from rounded_updates import drawn, errors_of, updated
from torch import Tensor

from weft_clt.active import active_from_dense
from weft_clt.kernels import AdamStep, CpuKernels, DecoderPairs, FeatureLists, Kernels, ReferenceKernels

BOTH = pytest.mark.parametrize("kernels", [ReferenceKernels(), CpuKernels()], ids=["reference", "cpu"])


def _check_rounding(found: Tensor, exact: Tensor) -> None:
    """Every value is one of the two around the exact one, and they are neither too large nor too small in the mean."""
    error = errors_of(found, exact)
    assert float(error.abs().max()) <= 1.001
    # The error of a value between two neighbours is spread by at most half their distance.
    assert abs(float(error.mean())) < 4 * 0.5 / exact.numel() ** 0.5
    assert float(error.abs().max()) > 0.9


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_update_rounds_moments_and_leaves_parameters_exact(kernels: Kernels, dtype: torch.dtype, beta1: float) -> None:
    """The parameters are those of an update in float64 from the same moments; a repetition is the same to the bit."""
    count = 20_000
    start, grad = drawn(1, count).to(dtype), drawn(2, count).to(dtype)
    moments = [drawn(3, count).bfloat16(), drawn(4, count).square().bfloat16()]
    step = AdamStep(0.01, beta1, 0.999, 1e-8, 3, 0.5)
    exact = [start.double().clone(), moments[0].double(), moments[1].double()]
    ReferenceKernels().adam(exact[0], grad.double(), exact[1] if beta1 else None, exact[2], step)
    left = updated(kernels, start, grad, moments, beta1, step)
    torch.testing.assert_close(left[0].double(), exact[0], rtol=1e-5, atol=1e-6)
    _check_rounding(left[2], exact[2])
    if beta1:
        _check_rounding(left[1], exact[1])


@pytest.mark.parametrize("num_columns", [7, 31, 144])
@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_update_of_the_decoder_is_the_references(num_columns: int, beta1: float) -> None:
    """Weights to rounding; moments to the bit, but for the few that other sums put on the other side of a value."""
    acts = drawn(5, 6, 40).relu()
    lists = FeatureLists.of([active_from_dense(acts, acts > 0)])
    pairs, shape = DecoderPairs.of(1, [(0, 0)]), (1, 40, num_columns)
    weight, grad_out = drawn(6, *shape), drawn(7, 1, 6, num_columns)
    step = AdamStep(0.01, beta1, 0.99, 1e-8, 4, 0.5)
    results = []
    for kernels in (CpuKernels(), ReferenceKernels()):
        param, second = weight.clone(), drawn(8, *shape).square().bfloat16()
        first = drawn(9, *shape).bfloat16() if beta1 else None
        kernels.decoder_adam(lists, pairs, param, grad_out, drawn(10, 1, 40), first, second, step)
        results.append((param, second, first))
    (param, second, first), (wanted, wanted_second, wanted_first) = results
    torch.testing.assert_close(param, wanted, rtol=1e-11, atol=1e-12)
    for mine, theirs in ((second, wanted_second), (first, wanted_first)):
        if mine is not None and theirs is not None:
            assert float((mine != theirs).double().mean()) < 0.002
            torch.testing.assert_close(mine, theirs, rtol=2.0**-7, atol=0)


@BOTH
def test_second_moment_follows_its_gradients_where_rounding_to_nearest_stalls(kernels: Kernels) -> None:
    """With beta2 = 0.999 a step moves it by less than half a unit; over 300 steps the mean is that of float64."""
    count, steps, start = 4_000, 300, 0.25
    second, param = torch.full((count,), start).bfloat16(), torch.zeros(count)
    for step in range(1, steps + 1):
        kernels.adam(param, torch.ones(count), None, second, AdamStep(0.0, 0.0, 0.999, 1e-8, step, 1.0))
    wanted = 1 - (1 - start) * 0.999**steps
    assert float((torch.tensor(start) * 0.999 + 0.001).bfloat16()) == start
    assert float(second.double().mean()) == pytest.approx(wanted, abs=4 * float(second.double().std()) / count**0.5)
    assert float(second.double().std()) < 0.05 * wanted


@BOTH
@pytest.mark.parametrize("case", ["top_k", "jump_relu_through_threshold"])
def test_training_with_narrow_moments_stays_beside_float32(case: str, kernels: Kernels) -> None:
    """Losses of 30 steps stay within 1 % of those with wide moments; only those of thresholds stay wide."""
    changes: dict[str, Any] = RECIPES[case] | {"num_steps": 30, "clip_norm": 0.0}
    wide = trainer_of(config_of(**changes), kernels)
    narrow = trainer_of(config_of(**changes, moments="MOMENTS_BFLOAT16"), kernels)
    for step in range(1, 31):
        batch = own_batch(1 + step % 5, wide.mesh)
        wanted, found = wide.train_step(batch), narrow.train_step(batch)
        assert found.loss == pytest.approx(wanted.loss, rel=0.01)
    for name, tensor in narrow.adam.named():
        assert tensor.dtype is (torch.float32 if name.endswith("threshold") else torch.bfloat16), name
    assert not torch.equal(narrow.params.w_dec_PFC, wide.params.w_dec_PFC)


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_moments_are_allocated_by_the_first_step(beta1: float) -> None:
    """Whoever only evaluates, perhaps beside the training on one GPU, has neither moments nor gradients."""
    trainer = trainer_of(config_of(adam_beta1=beta1), CpuKernels())
    trainer.evaluate(iter([own_batch(1, trainer.mesh)]), 1)
    assert not {"first", "second"} & vars(trainer.adam).keys()
    assert "grads" not in vars(trainer.engine)
    trainer.train_step(own_batch(1, trainer.mesh))
    assert (trainer.adam.first is not None) == (beta1 > 0)
    assert float(trainer.adam.second.w_enc_LSD.abs().sum()) > 0
