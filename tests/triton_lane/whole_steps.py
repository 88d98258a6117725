"""Whole training steps of one rank and of two."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton.runtime.interpreter
from tests.clt_cases import JUMP_RELU, config_of, trainer_of
from tests.other_device import DEVICE, Elsewhere, interpreted_elsewhere, other_device
from tests.triton_lane.step_cases import CASES, config_for, narrow_trainer, train

from weft_clt.kernels.reference import ReferenceKernels
from weft_clt.kernels.triton_kernels import TritonKernels
from weft_clt.mesh import Mesh, SingleAxis
from weft_clt.trainer import Trainer

ROOT = Path(__file__).parents[2]
CLOSE = {"rtol": 1e-3, "atol": 2e-4}
"""A fiftieth of what Adam moves a parameter by in a step, which divides small gradients by their own size."""


def _wanted(name: str) -> tuple[Trainer, list[tuple[float, float, float]]]:
    """What the reference makes of a case in float64, on one rank."""
    exact = trainer_of(config_for(name), ReferenceKernels())
    return exact, train(exact, CASES[name][1])


def _check(figures: list[tuple[float, float, float]], wanted: list[tuple[float, float, float]]) -> None:
    assert torch.tensor(figures) == pytest.approx(torch.tensor(wanted), rel=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_steps_are_the_references(name: str) -> None:
    """Whole steps in float32 give the parameters and figures that the reference gives in float64."""
    exact, wanted = _wanted(name)
    ours = narrow_trainer(config_for(name), TritonKernels(), Mesh(SingleAxis(), SingleAxis()))
    _check(train(ours, CASES[name][1]), wanted)
    assert (wanted[-1][2] > 0) == name.endswith("aux")
    for (tensor_name, mine), (_, theirs) in zip(ours.params.named(), exact.params.named(), strict=True):
        torch.testing.assert_close(mine.double(), theirs, **CLOSE, msg=lambda text, n=tensor_name: f"{n}: {text}")


def test_step_with_weights_of_bfloat16_is_the_references() -> None:
    """All else in float32: the loss, and weights that are the same bits but for few, and then neighbours."""
    config, mesh = config_of(**JUMP_RELU, parameters="PARAMETER_TYPE_BFLOAT16"), Mesh(SingleAxis(), SingleAxis())
    exact, ours = trainer_of(config, ReferenceKernels()), narrow_trainer(config, TritonKernels(), mesh)
    assert train(ours, 1)[0][0] == pytest.approx(train(exact, 1)[0][0], rel=1e-4)
    for name in ("w_enc_LSD", "w_dec_PFC"):
        mine, theirs = (getattr(trainer.params, name) for trainer in (ours, exact))
        assert mine.dtype is theirs.dtype is torch.bfloat16
        assert float((mine != theirs).double().mean()) < 0.02
        torch.testing.assert_close(mine, theirs, rtol=2.0**-7, atol=1e-5)


@pytest.mark.parametrize("name", ["jump_relu", "joint_top_k_window_aux"])
def test_steps_stay_on_their_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor of a step leaves the device, and no kernel is given one of the host; the numbers stay the same."""
    config, mesh = config_for(name), Mesh(SingleAxis(), SingleAxis())
    host = narrow_trainer(config, TritonKernels(), mesh)
    wanted = train(host, CASES[name][1])
    executor = triton.runtime.interpreter.GridExecutor
    monkeypatch.setattr(executor, "__call__", interpreted_elsewhere(executor.__call__))
    with other_device():
        there = narrow_trainer(config, TritonKernels(), mesh, DEVICE)
        assert train(there, CASES[name][1]) == wanted
        assert all(isinstance(tensor, Elsewhere) for _, tensor in there.state())
        state = {tensor_name: tensor.cpu() for tensor_name, tensor in there.state()}
    for tensor_name, tensor in host.state():
        assert torch.equal(state[tensor_name], tensor), tensor_name


FEATURE_AXIS = ("top_k_aux", "jump_relu", "batch_top_k_aux", "joint_top_k_window_aux")
DATA_AXIS = ("batch_top_k_aux", "micro_batches")


@pytest.mark.parametrize(
    ("feature_ranks", "data_ranks", "names"), [(2, 1, FEATURE_AXIS), (1, 2, DATA_AXIS)], ids=["feature", "data"]
)
def test_two_ranks_train_as_the_reference_does(
    feature_ranks: int, data_ranks: int, names: tuple[str, ...], tmp_path: Path
) -> None:
    """Over either axis of a mesh of two processes, against the reference on one rank."""
    process = [sys.executable, "-m", "tests.triton_lane.triton_mesh_process"]
    arguments = [str(feature_ranks), str(data_ranks), str(tmp_path), *names]
    ranks = [
        subprocess.Popen([*process, str(rank), *arguments], cwd=ROOT, env=os.environ, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for rank in ranks:
        _, errors = rank.communicate(timeout=200)
        assert rank.returncode == 0, errors.decode()[-3000:]
    for name in names:
        exact, wanted = _wanted(name)
        found = [torch.load(tmp_path / f"{name}-rank{rank}.pt") for rank in range(2)]
        for rank in found:
            _check(rank["figures"], wanted)
        for tensor_name, theirs in exact.params.named():
            dim = -1 if tensor_name in ("w_dec", "b_dec") else 1
            mine = [rank["params"][tensor_name] for rank in found]
            if data_ranks > 1:
                assert torch.equal(*mine), tensor_name
            whole = torch.cat(mine, dim) if feature_ranks > 1 else mine[0]
            torch.testing.assert_close(
                whole.double(), theirs, **CLOSE, msg=lambda text, n=f"{name}, {tensor_name}": f"{n}: {text}"
            )
