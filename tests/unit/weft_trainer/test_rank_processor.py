"""Which processor a rank takes, and that all ranks of a run take the same kind."""

import pytest
import torch

from weft_clt.mesh import Mesh, SingleAxis
from weft_common.errors import FailedPreconditionError, InvalidArgumentError
from weft_trainer.worker.processor import check_alike, choose_device, gpu_index, peak_device_bytes


def _ranks(index: int, count: int) -> dict[str, str]:
    return {"LOCAL_RANK": str(index), "LOCAL_WORLD_SIZE": str(count)}


def test_ranks_of_a_machine_take_one_gpu_each() -> None:
    """The number of the rank is the number of the GPU; further GPUs stay free."""
    assert [gpu_index("auto", _ranks(index, 4), 8) for index in range(4)] == [0, 1, 2, 3]
    assert gpu_index("cuda", {}, 2) == 0


@pytest.mark.parametrize("num_gpus", [0, 1, 3])
def test_auto_takes_processors_where_gpus_are_too_few(num_gpus: int) -> None:
    """For all four ranks of the machine alike, so that none computes on something else."""
    assert {gpu_index("auto", _ranks(index, 4), num_gpus) for index in range(4)} == {None}


def test_cuda_without_a_gpu_is_refused() -> None:
    """The message says how many there are."""
    with pytest.raises(FailedPreconditionError, match=r"Rank 1 of this machine .* torch sees 1"):
        gpu_index("cuda", _ranks(1, 2), 1)


@pytest.mark.parametrize("environment", [{"LOCAL_RANK": "x"}, _ranks(2, 2), _ranks(0, 0), {"LOCAL_RANK": "-1"}])
def test_local_rank_that_makes_no_sense_is_refused(environment: dict[str, str]) -> None:
    """Both variables are named."""
    with pytest.raises(InvalidArgumentError, match=r"LOCAL_RANK is .* LOCAL_WORLD_SIZE"):
        gpu_index("auto", environment, 2)


def test_rank_on_the_processor_asks_nothing_of_a_gpu() -> None:
    """Neither for its device nor for its memory."""
    device = choose_device("cpu", {})
    assert device == torch.device("cpu")
    assert peak_device_bytes(device) == 0


class GpuBeside(SingleAxis):
    """An axis with another rank, which computes on a GPU: it brings 1, and -1 where the smallest is looked for."""

    calls = 0

    def max_(self, tensor: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return tensor.clamp_(min=1 if self.calls == 1 else -1)


def test_ranks_of_two_kinds_are_refused() -> None:
    """One on a GPU beside one on the processor; among its kind, a rank goes on."""
    check_alike(Mesh(SingleAxis(), SingleAxis()), torch.device("cpu"))
    check_alike(Mesh(GpuBeside(), SingleAxis()), torch.device("cuda", 0))
    with pytest.raises(FailedPreconditionError, match="Some ranks found a GPU"):
        check_alike(Mesh(GpuBeside(), SingleAxis()), torch.device("cpu"))
