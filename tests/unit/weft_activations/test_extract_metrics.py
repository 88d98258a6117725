"""What a replica of activations shows of its harvests."""

import asyncio

import pytest

from weft_activations.core.metrics import incomplete_reason
from weft_common.errors import Code, DataLossError, StorageFullError
from weft_common.metrics import REGISTRY


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK])
def test_every_reason_is_shown_before_it_happens(code: Code) -> None:
    """Prometheus cannot see the first increase of a series that was not there: the alert would miss it."""
    assert REGISTRY.get_sample_value("weft_extract_incomplete_total", {"reason": code.name.lower()}) is not None


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (DataLossError("gone"), "data_loss"),
        (StorageFullError("full"), "resource_exhausted"),
        (asyncio.CancelledError(), "interrupted"),
        (RuntimeError("a hook failed"), "unknown"),
    ],
)
def test_reason_tells_a_stop_from_a_failure(error: BaseException, reason: str) -> None:
    """A replica that is told to stop does no harm; a defect in the model's code is not called a stop."""
    assert incomplete_reason(error) == reason
