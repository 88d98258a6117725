"""
Sparse kernels of a training step.

What is asked (`port`), in plain torch (`reference`), compiled for the CPU (`cpu`), and for CUDA (`triton_kernels`).
"""

import torch

from weft_clt.kernels.cpu import CpuKernels
from weft_clt.kernels.feature_lists import DecoderPairs, FeatureLists
from weft_clt.kernels.port import AdamStep, Kernels
from weft_clt.kernels.reference import ReferenceKernels

__all__ = [
    "AdamStep", "CpuKernels", "DecoderPairs", "FeatureLists", "Kernels", "ReferenceKernels", "kernels_for",
]  # fmt: skip


def kernels_for(device: torch.device) -> tuple[str, Kernels]:
    """
    Choose by the kind of device; also return the name of the choice, for a run's records.

    >>> kernels_for(torch.device("cpu"))[0]
    'cpu'
    """
    if device.type == "cuda":
        # Triton comes with torch for CUDA only, and takes a second to import.
        from weft_clt.kernels.triton_kernels import TritonKernels

        return "triton", TritonKernels()
    return ("cpu", CpuKernels()) if device.type == "cpu" else ("reference", ReferenceKernels())
