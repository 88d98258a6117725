"""What TopK lists of numbers that are not finite: as many entries as it counts, whatever they are."""

import pytest
import torch

from weft_clt.kernels import CpuKernels, Kernels, ReferenceKernels


@pytest.mark.parametrize("kernels", [CpuKernels(), ReferenceKernels()], ids=["cpu", "reference"])
def test_top_k_lists_as_many_entries_as_it_counts(kernels: Kernels) -> None:
    """Infinities are above all else, NaN is above nothing; the next token is listed as if they had not been."""
    random = torch.Generator().manual_seed(1)
    inputs_TD, w_enc_SD = torch.randn(64, 16, generator=random), torch.randn(256, 16, generator=random)
    inputs_TD[5, 3], inputs_TD[40] = torch.inf, torch.nan
    counts_T, feature_M, value_M = kernels.encode(inputs_TD, w_enc_SD, torch.zeros(256), None, 4)
    assert counts_T.tolist() == [4] * 40 + [0] + [4] * 23
    assert feature_M.shape == value_M.shape == (252,)
    assert value_M[20:24].tolist() == [torch.inf] * 4
    exact_S = inputs_TD[6] @ w_enc_SD.T
    assert set(feature_M[24:28].tolist()) == set(exact_S.topk(4).indices.tolist())
