"""A run that was saved and read back goes on as one that was never interrupted, whatever its recipe."""

from pathlib import Path

import pytest
import torch
from clt_cases import NAMED, RECIPES, config_of, own_batch, trainer_of

from weft_clt.checkpoint import read_part, write_tensors
from weft_clt.kernels import CpuKernels

WEIGHTS = {"parameters": "PARAMETER_TYPE_BFLOAT16"}
CASES = (
    RECIPES
    | NAMED
    | {
        "narrow_moments": RECIPES["jump_relu"] | {"moments": "MOMENTS_BFLOAT16"},
        "narrow_weights": RECIPES["top_k_aux"] | WEIGHTS,
        "narrow_weights_and_moments": RECIPES["jump_relu"] | WEIGHTS | {"moments": "MOMENTS_BFLOAT16"},
    }
)


@pytest.mark.parametrize("name", CASES)
def test_resumed_run_ends_bit_for_bit_where_the_other_does(name: str, tmp_path: Path) -> None:
    """Parameters, thresholds, moments and clocks after the last step are the same bits, and so is an evaluation."""
    config = config_of(**CASES[name])
    whole = trainer_of(config, CpuKernels())
    for step in range(1, 4):
        whole.train_step(own_batch(step, whole.mesh))
    write_tensors(tmp_path / "saved.safetensors", whole.state())
    resumed = trainer_of(config, CpuKernels())
    read_part(tmp_path / "saved.safetensors", 0, 1, resumed.state(), 0, 1)
    resumed.step = 3
    for trainer in (whole, resumed):
        for step in range(4, 6):
            trainer.train_step(own_batch(step, trainer.mesh))
    for (key, tensor), (_, again) in zip(whole.state(), resumed.state(), strict=True):
        assert torch.equal(tensor, again), key
    first, second = (each.evaluate(iter([own_batch(9, each.mesh)]), 1) for each in (whole, resumed))
    assert first == second


def test_batch_top_k_keeps_its_running_threshold_in_the_checkpoint() -> None:
    """It is among the parameters, so that the last checkpoint, which has nothing else, can be evaluated."""
    trainer = trainer_of(config_of(**RECIPES["batch_top_k"]), CpuKernels())
    bounds = []
    for step in range(1, 4):
        batch = own_batch(step, trainer.mesh)
        kept = trainer.engine.forward(*trainer.engine.gather(batch.inputs_LOD, batch.targets_LOD)).bound_L
        assert kept is not None
        bounds.append(kept.clone())
        trainer.train_step(batch)
    saved = dict(trainer.params.named())["threshold"]
    torch.testing.assert_close(saved, torch.stack(bounds).mean(0)[:, None].expand_as(saved), rtol=1e-12, atol=0)
    assert (saved > 0).all()


def test_batch_top_k_selects_outside_of_training_by_threshold_alone() -> None:
    """A token's features do not depend on the tokens beside it."""
    trainer = trainer_of(config_of(**RECIPES["batch_top_k"]), CpuKernels())
    trainer.train_step(own_batch(1, trainer.mesh))
    batch = own_batch(7, trainer.mesh)
    inputs, targets = batch.inputs_LOD, batch.targets_LOD
    together = trainer.engine.forward(inputs, targets, near=False).error_LTC.clone()
    for token in range(inputs.shape[1]):
        row = slice(token, token + 1)
        alone = trainer.engine.forward(inputs[:, row].contiguous(), targets[:, row].contiguous(), near=False)
        torch.testing.assert_close(alone.error_LTC, together[:, row], rtol=1e-12, atol=1e-13)
