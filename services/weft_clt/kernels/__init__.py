"""Sparse kernels of a training step: what is asked (`port`), in plain torch (`reference`), compiled (`cpu`)."""

from weft_clt.kernels.cpu import CpuKernels
from weft_clt.kernels.feature_lists import DecoderPairs, FeatureLists
from weft_clt.kernels.port import AdamStep, Kernels
from weft_clt.kernels.reference import ReferenceKernels

__all__ = ["AdamStep", "CpuKernels", "DecoderPairs", "FeatureLists", "Kernels", "ReferenceKernels"]
