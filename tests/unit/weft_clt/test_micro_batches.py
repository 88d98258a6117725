"""A step whose tokens come in several passes, against one that takes them at once, in float64."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from clt_cases import RECIPES, config_of, gradients, own_batch, trainer_of

from weft_clt.initial import calibrate_biases
from weft_clt.kernels import CpuKernels, Kernels, ReferenceKernels
from weft_clt.trainer import Batch, Trainer
from weft_common.errors import FailedPreconditionError

CASES: dict[str, dict[str, Any]] = {name: case for name, case in RECIPES.items() if not name.startswith("batch_top_k")}


def _cut(batch: Batch, num_parts: int) -> Iterator[Batch]:
    size = batch.num_valid // num_parts
    for part in range(num_parts):
        rows = slice(part * size, (part + 1) * size)
        yield Batch(batch.inputs_LOD[:, rows].contiguous(), batch.targets_LOD[:, rows].contiguous(), size)


def _pair(case: dict[str, Any], kernels: Kernels, micro_batches: int) -> list[Trainer]:
    """Two trainers after the first step, which sets biases from its first pass alone; some features are dead."""
    trainers = [trainer_of(config_of(**case, micro_batches=number), kernels) for number in (0, micro_batches)]
    for trainer in trainers:
        trainer.step = 1
        trainer.clock.silent_tokens_LF[1, 2:9] = trainer.config.batch.dead_after_tokens
    return trainers


@pytest.mark.parametrize("kernels", [ReferenceKernels(), CpuKernels()], ids=["reference", "cpu"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("micro_batches", [2, 8])
def test_step_in_passes_is_the_step_at_once(case: str, micro_batches: int, kernels: Kernels) -> None:
    """Losses, metrics, every gradient, and all that a step changes agree to rounding, step after step."""
    whole, parted = _pair(CASES[case], kernels, micro_batches)
    revived = False
    for step in range(2, whole.config.batch.num_steps + 1):
        batch = own_batch(step, whole.mesh)
        wanted = whole.train_step(batch)
        *first, last = _cut(batch, micro_batches)
        for part in first:
            parted.add_pass(part)
        found = parted.train_step(last)
        for name in (
            "tokens", "loss", "reconstruction_loss", "sparsity_loss", "preact_loss", "aux_loss", "l0",
            "explained_variance", "dead_share", "gradient_norm", "learning_rate",
        ):  # fmt: skip
            assert getattr(found, name) == pytest.approx(getattr(wanted, name), rel=1e-10), name
        assert parted.engine.decoder_grads is None
        passed = dict(parted.engine.grads.named())
        for name, grad in gradients(whole).items():
            if name == "w_dec":
                continue  # the weights that it depends on have moved; `gradient_norm` and the moments have it
            torch.testing.assert_close(passed[name], grad, rtol=1e-10, atol=1e-12)
        revived |= found.aux_loss > 0
    assert revived == (whole.config.loss.aux_top_k > 0)
    for (name, mine), (_, theirs) in zip(parted.state(), whole.state(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10, msg=lambda text, n=name: f"{n}: {text}")


def test_first_biases_are_set_once_from_the_first_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other passes of the first step leave them alone."""
    trainer = trainer_of(config_of(**RECIPES["jump_relu"], micro_batches=2), CpuKernels())
    first, last = _cut(own_batch(1, trainer.mesh), 2)
    wanted = trainer_of(config_of(**RECIPES["jump_relu"]), CpuKernels())
    calibrate_biases(wanted.params, first.inputs_LOD, wanted.mesh)
    trainer.add_pass(first)
    assert trainer.params.b_enc_LS.any()
    assert torch.equal(trainer.params.b_enc_LS, wanted.params.b_enc_LS)
    monkeypatch.setattr(trainer.adam, "update", lambda *_, **__: 0.0)
    trainer.train_step(last)
    assert torch.equal(trainer.params.b_enc_LS, wanted.params.b_enc_LS)


def test_passes_beyond_a_step_and_missing_ones_are_refused() -> None:
    """The message counts them, and nothing has changed."""
    trainer = trainer_of(config_of(micro_batches=2), CpuKernels())
    first, last = _cut(own_batch(1, trainer.mesh), 2)
    with pytest.raises(FailedPreconditionError, match="0 of 2 passes"):
        trainer.train_step(first)
    trainer.add_pass(first)
    with pytest.raises(FailedPreconditionError, match="1 of 2 passes"):
        trainer.add_pass(first)
    assert trainer.train_step(last).step == 1
