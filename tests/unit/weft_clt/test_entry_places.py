"""How many entries a step may list."""

import pytest
import torch

from weft_clt.exchange import OwnEntries, check_places, exchange_entries
from weft_clt.kernels import ReferenceKernels
from weft_clt.mesh import SingleAxis
from weft_common.errors import ShapeError


def test_more_entries_than_int32_can_number_are_refused_before_they_are_joined() -> None:
    """Over all layers together, with what to change; the last that fits is fine."""
    check_places((1 << 31) - 1)
    layer = OwnEntries(torch.tensor([1 << 30], dtype=torch.int32), torch.empty(0, dtype=torch.int64), torch.empty(0))
    with pytest.raises(ShapeError, match=r"2147483648 features are active .* lower step_tokens, or raise data_ranks"):
        exchange_entries([layer] * 2, SingleAxis(), ReferenceKernels(), num_features=4, rank_features=4, top_k=0)
