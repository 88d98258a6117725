"""
What a rank computes on: the host's processor, or one GPU of its own.

On one machine torchrun counts ranks by LOCAL_RANK, of LOCAL_WORLD_SIZE, and each takes the GPU of that number; a pod
sees the GPUs that it was given, and its one rank takes the first. All ranks of a run compute on the same kind: tensors
of a GPU and of the host do not travel in one collective.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from weft_common.errors import FailedPreconditionError, InvalidArgumentError

if TYPE_CHECKING:
    import torch

    from weft_clt.mesh import Mesh

__all__ = ["check_alike", "choose_device", "device_name", "gpu_index", "peak_device_bytes"]


def gpu_index(wanted: str, environment: Mapping[str, str], num_gpus: int) -> int | None:
    """
    Return which GPU a rank takes; None for the host's processor.

    Args:
        wanted: cpu; cuda; or auto, which is cuda where every rank of this machine has a GPU of its own.
        environment: Where LOCAL_RANK and LOCAL_WORLD_SIZE stand; a rank that has none is alone on its machine.
        num_gpus: That this process sees.

    Raises:
        FailedPreconditionError: There is no GPU for the rank.
        InvalidArgumentError: The environment makes no sense.

    >>> ranks = {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    >>> gpu_index("auto", ranks, 2), gpu_index("auto", ranks, 1), gpu_index("cpu", ranks, 2), gpu_index("cuda", {}, 1)
    (1, None, None, 0)
    """
    texts = environment.get("LOCAL_RANK", "0"), environment.get("LOCAL_WORLD_SIZE", "1")
    if not (texts[0].isdecimal() and texts[1].isdecimal() and int(texts[0]) < int(texts[1])):
        raise InvalidArgumentError(
            f"LOCAL_RANK is {texts[0]!r} and LOCAL_WORLD_SIZE {texts[1]!r}: give numbers, the first from 0 and below "
            "the second."
        )
    index, num_ranks = map(int, texts)
    if wanted == "cpu" or (wanted == "auto" and num_gpus < num_ranks):
        return None
    if index >= num_gpus:
        raise FailedPreconditionError(
            f"Rank {index} of this machine is to compute on a GPU of its own, and torch sees {num_gpus}: start fewer "
            "ranks a machine, make more GPUs visible, or set the device to cpu."
        )
    return index


def choose_device(wanted: str, environment: Mapping[str, str]) -> torch.device:
    """Choose a rank's device and make it the process's own; see `gpu_index`."""
    import torch

    index = gpu_index(wanted, environment, torch.cuda.device_count() if torch.cuda.is_available() else 0)
    if index is None:
        return torch.device("cpu")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def check_alike(mesh: Mesh, device: torch.device) -> None:
    """
    Refuse ranks of which some compute on a GPU and some do not. FailedPreconditionError.

    Collectives: two reductions on each axis.
    """
    on_gpu = int(device.type == "cuda")
    if mesh.largest(on_gpu) != -mesh.largest(-on_gpu):
        raise FailedPreconditionError(
            f"Some ranks found a GPU and some did not; this one computes on {device_name(device)}. Give every rank a "
            "GPU, or set the device of all to cpu."
        )


def device_name(device: torch.device) -> str:
    """Name a device for a log."""
    import torch

    return f"{device}, {torch.cuda.get_device_name(device)}" if device.type == "cuda" else str(device)


def peak_device_bytes(device: torch.device) -> int:
    """Most memory of a GPU that this process's tensors have taken at once; 0 for the host, whose peak is its own."""
    import torch

    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
