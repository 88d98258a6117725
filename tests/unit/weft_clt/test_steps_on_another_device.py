"""Whole steps with everything on a device that is not the host: the same numbers, and nothing that a GPU refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from clt_cases import (
    D_MODEL,
    JUMP_RELU,
    NUM_LAYERS,
    NUM_TOKENS,
    RECIPES,
    config_of,
    normalization,
    own_batch,
    trainer_of,
)
from other_device import DEVICE, Elsewhere, other_device

from weft_clt.checkpoint import read_part, write_tensors
from weft_clt.kernels import ReferenceKernels
from weft_clt.mesh import Mesh, SingleAxis
from weft_clt.metrics import Evaluation, StepMetrics
from weft_clt.trainer import Batch, Trainer

NUM_STEPS = 3
CASES: dict[str, dict[str, Any]] = RECIPES | {
    "jump_relu_narrow": JUMP_RELU | {"parameters": "PARAMETER_TYPE_BFLOAT16", "moments": "MOMENTS_BFLOAT16"},
    "joint_top_k_narrow": RECIPES["joint_top_k"] | {"parameters": "PARAMETER_TYPE_BFLOAT16"},
}


def _elsewhere(changes: dict[str, Any], start: Trainer) -> Trainer:
    """A trainer there, which starts where another does."""
    config, mesh = config_of(**changes), Mesh(SingleAxis(), SingleAxis())
    trainer = Trainer(
        config, normalization(), mesh, ReferenceKernels(), num_layers=NUM_LAYERS, d_model=D_MODEL,
        dtype=torch.float64, device=DEVICE,
    )  # fmt: skip
    for (_, there), (_, here) in zip(trainer.state(), start.state(), strict=True):
        there.copy_(here)
    return trainer


def _moved(batch: Batch) -> Batch:
    return Batch(batch.inputs_LOD.to(DEVICE), batch.targets_LOD.to(DEVICE), batch.num_valid)


def _figures(metrics: StepMetrics) -> dict[str, float]:
    timed = {"tokens_per_s", "data_wait_share"}
    return {name: value for name, value in vars(metrics).items() if name not in timed}


def _trained(trainer: Trainer, num_tokens: int = NUM_TOKENS) -> tuple[list[dict[str, float]], Evaluation]:
    on_host = trainer.params.device.type == "cpu"
    batches = [own_batch(step, trainer.mesh, num_tokens) for step in range(1, NUM_STEPS + 1)]
    metrics = [_figures(trainer.train_step(batch if on_host else _moved(batch))) for batch in batches]
    held_out = own_batch(99, trainer.mesh, num_tokens)
    return metrics, trainer.evaluate(iter([held_out if on_host else _moved(held_out)]), 1)


@pytest.mark.parametrize("name", CASES)
def test_steps_are_those_of_the_host(name: str) -> None:
    """Every tensor that a step changes, every figure and an evaluation, to the bit; all of it stays on the device."""
    host = trainer_of(config_of(**CASES[name]), ReferenceKernels())
    with other_device():
        there = _elsewhere(CASES[name], host)
        found = _trained(there)
        assert all(isinstance(tensor, Elsewhere) for _, tensor in there.state())
        state = {tensor_name: tensor.cpu() for tensor_name, tensor in there.state()}
    assert found == _trained(host)
    for tensor_name, tensor in host.state():
        assert torch.equal(state[tensor_name], tensor), tensor_name


@pytest.mark.parametrize("name", ["top_k", "batch_top_k_aux", "joint_top_k_window_aux", "jump_relu"])
def test_host_waits_no_more_often_for_more_tokens(name: str) -> None:
    """How often the host needs a number of the device does not depend on the size of a step."""
    waits = []
    for num_tokens in (NUM_TOKENS, 4 * NUM_TOKENS):
        changes = RECIPES[name] | {"step_tokens": num_tokens}
        host = trainer_of(config_of(**changes), ReferenceKernels())
        with other_device() as mode:
            there = _elsewhere(changes, host)
            mode.waits.clear()
            there.train_step(_moved(own_batch(1, there.mesh, num_tokens)))
            waits.append(list(mode.waits))
    assert waits[0] == waits[1]
    assert waits[0]


def test_checkpoints_go_from_a_device_to_the_host_and_back(tmp_path: Path) -> None:
    """The file is the host's, byte for byte, and a device that reads it holds the same."""
    changes = RECIPES["jump_relu_window_skip_aux"]
    host = trainer_of(config_of(**changes), ReferenceKernels())
    _trained(host)
    write_tensors(tmp_path / "host.safetensors", host.state())
    with other_device():
        there = _elsewhere(changes, host)
        write_tensors(tmp_path / "there.safetensors", there.state())
        fresh = _elsewhere(changes, trainer_of(config_of(**changes), ReferenceKernels()))
        read_part(tmp_path / "there.safetensors", 0, 1, fresh.state(), 0, 1)
        read = {name: tensor.cpu() for name, tensor in fresh.state()}
    assert (tmp_path / "there.safetensors").read_bytes() == (tmp_path / "host.safetensors").read_bytes()
    for name, tensor in host.state():
        assert torch.equal(read[name], tensor), name


def test_reading_a_number_of_a_device_counts_as_waiting() -> None:
    """So that a rank whose device waits for others is seen to wait; the host's own numbers are there already."""
    mesh = Mesh(SingleAxis(), SingleAxis())
    assert mesh.read(torch.ones(2)).tolist() == [1.0, 1.0]
    assert mesh.progress.entered == 0
    with other_device():
        read = mesh.read(torch.ones(2, device=DEVICE))
    assert read.tolist() == [1.0, 1.0]
    assert (mesh.progress.entered, mesh.progress.inside_since_s) == (1, None)


def test_tensors_of_two_devices_do_not_mix() -> None:
    """The stand-in refuses what a GPU would: an operation on both, NumPy, and a list."""
    with other_device():
        there = torch.zeros(3, device=DEVICE)
        assert isinstance(there + 1, Elsewhere)
        with pytest.raises(AssertionError, match="two devices"):
            there + torch.ones(3)
        with pytest.raises((RuntimeError, TypeError)):
            there.numpy()
        with pytest.raises((RuntimeError, TypeError)):
            there.tolist()
