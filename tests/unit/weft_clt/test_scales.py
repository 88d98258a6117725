"""Units of training with separate and with shared scales."""

import numpy as np
import pytest

from weft_clt.config import Scales
from weft_clt.normalization import Moments, Normalization


def _normalization(scales: Scales) -> Normalization:
    """Two layers of width 4: inputs of norms 1 and 3, outputs of norms 5 and 11; means of ones and twos."""
    inputs = [Moments(1.0, np.full(4, 1.0)), Moments(3.0, np.full(4, 1.0))]
    outputs = [Moments(5.0, np.full(4, 2.0)), Moments(11.0, np.full(4, 2.0))]
    return Normalization.from_moments(inputs, outputs, scales)


@pytest.mark.parametrize(
    ("scales", "norms_in", "norms_out"),
    [
        (Scales.SEPARATE, [1, 3], [5, 11]),
        (Scales.TIED, [3, 7], [3, 7]),
        (Scales.ACROSS_LAYERS, [2, 2], [8, 8]),
    ],
)
def test_scales_bring_the_norms_that_share_them_to_the_root_of_the_width(
    scales: Scales, norms_in: list[int], norms_out: list[int]
) -> None:
    """Each scale is sqrt(4) over the mean of the mean norms that share it, and means are in scaled units."""
    found = _normalization(scales)
    np.testing.assert_allclose(found.input_scale_L, 2 / np.array(norms_in))
    np.testing.assert_allclose(found.output_scale_L, 2 / np.array(norms_out))
    np.testing.assert_allclose(found.input_mean_LD, found.input_scale_L[:, None] * np.ones(4))
    np.testing.assert_allclose(found.output_mean_LD, found.output_scale_L[:, None] * np.full(4, 2.0))
