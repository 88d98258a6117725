"""Sparse kernels of a training step: what is asked (`port`), in plain torch (`reference`), compiled (`cpu`)."""

from weft_clt.kernels.cpu import CpuKernels
from weft_clt.kernels.port import AdamStep, Kernels
from weft_clt.kernels.reference import ReferenceKernels

__all__ = ["AdamStep", "CpuKernels", "Kernels", "ReferenceKernels"]
