"""Weights in bfloat16, rounded at random: beside the exact ones, right in the mean, good enough to learn."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from clt_cases import RECIPES, config_of, own_batch, some_dead, trainer_of
from rounded_updates import drawn, errors_of, updated
from torch import Tensor

from weft_clt.active import active_from_dense
from weft_clt.kernels import AdamStep, CpuKernels, DecoderPairs, FeatureLists, Kernels, ReferenceKernels
from weft_clt.mesh import Mesh, SingleAxis
from weft_clt.normalization import Normalization
from weft_clt.trainer import Batch, Trainer

BOTH = pytest.mark.parametrize("kernels", [ReferenceKernels(), CpuKernels(2)], ids=["reference", "cpu"])
WIDE: dict[str, Any] = {}
NARROW: dict[str, Any] = {"parameters": "PARAMETER_TYPE_BFLOAT16"}


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta1", [0.0, 0.9])
@pytest.mark.parametrize("narrow_moments", [False, True])
def test_update_rounds_weights_up_or_down(
    kernels: Kernels, dtype: torch.dtype, beta1: float, narrow_moments: bool
) -> None:
    """Each is a neighbour of float64's, in the mean it is float64's, and a repetition is the same to the bit."""
    count = 20_001
    start, grad = drawn(1, count).bfloat16(), drawn(2, count).to(dtype)
    kind = torch.bfloat16 if narrow_moments else dtype
    moments = [drawn(3, count).to(kind), drawn(4, count).square().to(kind)]
    step = AdamStep(0.01, beta1, 0.999, 1e-8, 3, 0.5)
    exact = [each.double().clone() for each in (start, *moments)]
    ReferenceKernels().adam(exact[0], grad.double(), exact[1] if beta1 else None, exact[2], step)
    left = updated(kernels, start, grad, moments, beta1, step)
    for found, wanted in zip(left, exact, strict=True):
        if found.dtype is not torch.bfloat16:
            torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)
        elif beta1 or found is not left[1]:
            errors = errors_of(found, wanted)
            assert 0.9 < float(errors.abs().max()) <= 1.001
            # Between two neighbours the error's standard deviation is at most half of their distance.
            assert abs(float(errors.mean())) < 4 * 0.5 / count**0.5


@BOTH
def test_update_is_right_in_the_mean_over_draws(kernels: Kernels) -> None:
    """The mean of each of 16 weights over the noise of 2,000 steps is the exact value, within 4.5 standard errors."""
    draws, rate = 2_000, 2e-3
    start, grad = torch.linspace(0.3, 3.0, 16).bfloat16(), torch.linspace(-1, 1, 16)
    found = torch.empty(draws, 16, dtype=torch.float64)
    for draw in range(draws):
        param = start.clone()
        # With next to no memory of past gradients the update is the rate times the sign, whatever the step.
        kernels.adam(param, grad, None, torch.zeros(16), AdamStep(rate, 0.0, 1e-30, 1e-12, draw + 1, 1.0))
        found[draw] = param
    error = found.mean(0) - (start.double() - rate * grad.double().sign())
    assert float((error / found.std(0) * draws**0.5).abs().max()) < 4.5


@BOTH
def test_small_steps_count_where_rounding_to_nearest_stalls(kernels: Kernels) -> None:
    """Steps of a hundredth of the last place move 10,000 weights by their sum, within 4 standard errors."""
    count, rate, steps = 10_000, 2.0**-7 / 100, 20
    param, second = torch.ones(count, dtype=torch.bfloat16), torch.zeros(count)
    for step in range(1, steps + 1):
        kernels.adam(param, torch.full((count,), -1.0), None, second, AdamStep(rate, 0.0, 0.9, 1e-12, step, 1.0))
    assert float((torch.ones(1) + rate).bfloat16()) == 1.0
    moved = param.double() - 1
    assert abs(float(moved.mean()) - rate * steps) < 4 * float(moved.std()) / count**0.5
    assert float(moved.std()) / count**0.5 < 0.1 * rate * steps


@pytest.mark.parametrize("num_columns", [7, 31, 144])
@pytest.mark.parametrize("beta1", [0.0, 0.9])
@pytest.mark.parametrize("narrow_moments", [False, True])
def test_update_of_the_decoder_is_the_references(num_columns: int, beta1: float, narrow_moments: bool) -> None:
    """To the bit, but for the few that other sums put on the other side of a value; in one pass or in two."""
    acts = drawn(5, 6, 40).relu()
    lists = FeatureLists.of([active_from_dense(acts, acts > 0)])
    pairs, shape = DecoderPairs.of(1, [(0, 0)]), (1, 40, num_columns)
    weight, grad_out, coeff = drawn(6, *shape).bfloat16(), drawn(7, 1, 6, num_columns), drawn(10, 1, 40)
    kind = torch.bfloat16 if narrow_moments else torch.float64
    step = AdamStep(0.01, beta1, 0.99, 1e-8, 4, 0.5)
    results = []
    for kernels, fused in ((ReferenceKernels(), True), (CpuKernels(1), True), (CpuKernels(2), False)):
        param, second = weight.clone(), drawn(8, *shape).square().to(kind)
        first = drawn(9, *shape).to(kind) if beta1 else None
        if fused:
            kernels.decoder_adam(lists, pairs, param, grad_out, coeff, first, second, step)
        else:
            grad = torch.full(shape, torch.nan, dtype=torch.float64)
            kernels.decoder_gradient(lists, pairs, param, grad_out, coeff, grad, fresh=True)
            kernels.adam(param, grad, first, second, step)
        results.append((param, second, first))
    assert not torch.equal(results[0][0], weight)
    for found in results[1:]:
        for mine, theirs in zip(found, results[0], strict=True):
            if mine is None or theirs is None:
                continue
            if mine.dtype is torch.bfloat16:
                assert float((mine != theirs).double().mean()) < 0.002
            torch.testing.assert_close(mine, theirs, rtol=2.0**-7 if mine.dtype is torch.bfloat16 else 1e-11, atol=0)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_columns", [7, 31, 144])
def test_products_are_those_of_the_same_weights_widened(kernels: Kernels, dtype: torch.dtype, num_columns: int) -> None:
    """Pre-activations, errors, gradients and norms have the same bits: nothing is computed in bfloat16."""
    acts = drawn(5, 6, 40).relu().to(dtype)
    lists = FeatureLists.of([active_from_dense(acts, acts > 0)])
    pairs = DecoderPairs.of(1, [(0, 0)])
    weight, encoder = drawn(6, 1, 40, num_columns).bfloat16(), drawn(11, 40, 9).bfloat16()
    grad_out, targets = drawn(7, 1, 6, num_columns).to(dtype), drawn(8, 1, 6, num_columns).to(dtype)
    bias, coeff, b_enc = drawn(9, 1, num_columns).to(dtype), drawn(10, 1, 40).to(dtype), drawn(12, 40).to(dtype)
    inputs = drawn(13, 6, 9).to(dtype)
    results = []
    for kind in (torch.bfloat16, dtype):
        w_dec, w_enc = weight.to(kind), encoder.to(kind)
        error, grad = torch.empty_like(targets), torch.ones(1, 40, num_columns, dtype=dtype)
        slots, grad_bias, squares_F = torch.zeros(lists.value_N.shape[0], dtype=dtype), bias.clone(), b_enc.clone()
        kernels.decode_pass(lists, pairs, w_dec, bias, targets, error)
        squares = kernels.value_grad_pass(lists, pairs, w_dec, grad_out, slots, grad_bias)
        kernels.decoder_gradient(lists, pairs, w_dec, grad_out, coeff, grad)
        kernels.add_row_squares(w_dec[0], squares_F)
        listed = kernels.encode(inputs, w_enc, b_enc, None, 5)
        results.append([error, slots, grad_bias, torch.tensor(squares), grad, squares_F, *listed])
    for narrow, wide in zip(*results, strict=True):
        assert narrow.dtype is wide.dtype
        assert torch.equal(narrow, wide)


@BOTH
@pytest.mark.parametrize("case", RECIPES)
def test_step_is_that_of_the_same_weights_but_for_their_rounding(case: str, kernels: Kernels) -> None:
    """Gradients and all that is not a weight are those of wide weights; each weight is a neighbour of theirs."""
    narrow, wide = (trainer_of(config_of(**RECIPES[case], **kind), kernels) for kind in (NARROW, WIDE))
    for (_, mine), (_, theirs) in zip(narrow.params.named(), wide.params.named(), strict=True):
        theirs.copy_(mine)
    batch, dead = own_batch(2, wide.mesh), some_dead(wide.config)
    for trainer in (narrow, wide):
        forward = trainer.engine.forward(batch.inputs_LOD, batch.targets_LOD, dead_LF=dead)
        trainer.engine.backward(forward, step_tokens=batch.num_valid, sparsity_coeff=0.1)
    for (name, mine), (_, theirs) in zip(gradients_of(narrow), gradients_of(wide), strict=True):
        assert mine.dtype is theirs.dtype is torch.float64
        assert torch.equal(mine, theirs), name
    found, wanted = (trainer.train_step(batch) for trainer in (narrow, wide))
    assert (found.loss, found.gradient_norm) == (wanted.loss, wanted.gradient_norm)
    for (name, mine), (_, theirs) in zip(narrow.state(), wide.state(), strict=True):
        if name in ("w_enc", "w_dec"):
            assert float(errors_of(mine, theirs).abs().max()) <= 1.001, name
        else:
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-15, msg=lambda text, n=name: f"{n}: {text}")


def gradients_of(trainer: Trainer) -> list[tuple[str, Tensor]]:
    """The decoder's, which the engine does not have in memory, in the type that it would have."""
    grads = dict(trainer.engine.grads.named())
    assert trainer.engine.decoder_grads is not None
    grads["w_dec"] = torch.zeros(trainer.params.w_dec_PFC.shape, dtype=trainer.params.dtype)
    trainer.engine.decoder_grads.add_to(grads["w_dec"])
    return list(grads.items())


def test_step_in_passes_rounds_as_the_step_at_once() -> None:
    """The written-out gradient's update has the noise of the fused one: the same bits but for few."""
    whole, parted = (
        trainer_of(config_of(**RECIPES["top_k"], **NARROW, micro_batches=number), CpuKernels()) for number in (0, 2)
    )
    batch = own_batch(1, whole.mesh)
    whole.train_step(batch)
    halves = [
        Batch(batch.inputs_LOD[:, rows].contiguous(), batch.targets_LOD[:, rows].contiguous(), 4)
        for rows in (slice(0, 4), slice(4, 8))
    ]
    parted.add_pass(halves[0])
    parted.train_step(halves[1])
    for (name, mine), (_, theirs) in zip(parted.params.named(), whole.params.named(), strict=True):
        assert float((mine.double() - theirs.double()).abs().gt(1e-9).double().mean()) < 0.01, name


@dataclass
class Problem:
    """Layers that are sparse sums of directions, and outputs that are other sums of the same causes."""

    num_layers: int = 2
    d_model: int = 16
    causes: int = 40

    def batch(self, seed: int, num_tokens: int) -> Batch:
        random = np.random.default_rng([7, seed])
        there = random.random((num_tokens, self.causes)) < 0.08
        acts = there * (0.5 + random.random((num_tokens, self.causes)))
        fixed = np.random.default_rng(3)
        shape = (self.num_layers, self.causes, self.d_model)
        reading, writing = fixed.standard_normal(shape) / 2, fixed.standard_normal(shape) / 2
        inputs, targets = (torch.from_numpy(acts @ each).float() for each in (reading, writing))
        return Batch(inputs, targets, num_tokens)

    def trained(self, kernels: Kernels, **changes: Any) -> Trainer:
        config = config_of(
            num_features=96, top_k=6, num_steps=250, step_tokens=256, learning_rate=5e-3, warmup_steps=10,
            adam_beta2=0.999, **changes,
        )  # fmt: skip
        means, ones = np.zeros((self.num_layers, self.d_model)), np.ones(self.num_layers)
        trainer = Trainer(
            config, Normalization(ones, ones, means, means), Mesh(SingleAxis(), SingleAxis()), kernels,
            num_layers=self.num_layers, d_model=self.d_model,
        )  # fmt: skip
        for step in range(config.batch.num_steps):
            trainer.train_step(self.batch(step, 256))
        return trainer


def test_explained_variance_on_held_out_tokens_is_beside_float32s() -> None:
    """After 250 steps, within 0.01 of float32's, with narrow moments too; and both have learnt."""
    problem, kernels = Problem(), CpuKernels()
    held_out = problem.batch(10_000, 256)
    found = []
    for changes in (WIDE, NARROW, NARROW | {"moments": "MOMENTS_BFLOAT16"}):
        trainer = problem.trained(kernels, **changes)
        assert trainer.params.w_dec_PFC.dtype is (torch.bfloat16 if changes else torch.float32)
        found.append(trainer.evaluate(iter([held_out]), 1).explained_variance)
    assert found[0] > 0.6
    assert found[1:] == pytest.approx([found[0]] * 2, abs=0.01)
