"""How many entries a step may list."""

import pytest
import torch

from weft_clt.exchange import OwnEntries, check_places, exchange_entries
from weft_clt.kernels import ReferenceKernels
from weft_clt.mesh import SingleAxis
from weft_common.errors import ShapeError


def test_more_entries_than_int32_can_number_are_refused_before_they_are_joined() -> None:
    """Over all tokens and layers together, with what to change; the last that fits is fine."""
    check_places((1 << 31) - 1)
    for num_layers, num_tokens in ((2, 1), (1, 2), (3, 2)):
        counts_T = torch.full((num_tokens,), 1 << 30, dtype=torch.int32)
        layer = OwnEntries(counts_T, torch.empty(0, dtype=torch.int64), torch.empty(0))
        found = num_layers * num_tokens << 30
        with pytest.raises(ShapeError, match=rf"{found} features are active .* lower step_tokens, or raise data_ranks"):
            exchange_entries(
                [layer] * num_layers, SingleAxis(), ReferenceKernels(), num_features=4, rank_features=4, top_k=0
            )
