"""
Datasets are held for as long as long work reads them, so that neither a person nor a retention takes them away.

The holder is the operation. Its hold counts until the operation's own document says that it is done, however it ended
and whoever died on the way, so nobody has to release it. A release would do harm: what is asked for again has the name
of the attempt before, whose late release would take away the hold of the new one.
"""

import asyncio
from contextlib import suppress

from weft_attribution.core.ports import DatasetHolds
from weft_common.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
)
from weft_common.logging import get_logger

__all__ = ["DatasetHolding"]

_LOG = get_logger(__name__)
_EARLY_S = 5.0
"""Longest that whoever asks for work waits for a hold that its work takes anyway."""


class DatasetHolding:
    """
    Holds datasets for operations.

    Args:
        holds: The cache; None where nobody named one: then nothing is held, and the log says so.
    """

    def __init__(self, holds: DatasetHolds | None) -> None:
        self._holds = holds

    async def hold(self, dataset: str, operation: str) -> None:
        """
        Hold a dataset before an operation reads it; every replica does, and every attempt anew.

        Args:
            dataset: Its id.
            operation: `operations/{operation}`, not done.

        Raises:
            FailedPreconditionError: The dataset is gone or on its way out, or the cache does not let us hold it.
            UnavailableError: The cache does not answer.
        """
        if self._holds is None:
            _LOG.warning(
                "dataset_is_not_held",
                dataset=dataset,
                operation=operation,
                reason="WEFT_ATTRIBUTION_CACHE_TARGET is not set, so that the dataset may be deleted meanwhile",
            )
            return
        try:
            await self._holds.hold(dataset, operation)
        except NotFoundError as error:
            raise FailedPreconditionError(
                f"datasets/{dataset} was deleted, or is being deleted, and {operation} was to read it; harvest it "
                "again, then ask for this again"
            ) from error
        except (UnavailableError, DeadlineExceededError) as error:
            raise UnavailableError(
                f"the cache does not answer, and {operation} reads datasets/{dataset} only while the cache keeps it "
                f"from being deleted ({error.message}); see that the cache runs and that WEFT_ATTRIBUTION_CACHE_TARGET "
                "is its address, then ask for this again: it goes on from what is stored"
            ) from error
        except (UnauthenticatedError, PermissionDeniedError) as error:
            raise FailedPreconditionError(
                f"the cache does not let attribution hold datasets/{dataset} for {operation} ({error.message}); set "
                "WEFT_ATTRIBUTION_CACHE_TOKEN to the cache's token, then ask for this again"
            ) from error

    async def hold_waiting(self, dataset: str, operation: str) -> None:
        """
        Hold a dataset for an operation that waits for a replica, where the cache answers soon.

        Whoever takes the operation up holds the dataset in any case.

        Raises:
            FailedPreconditionError: As of `hold`.
        """
        if self._holds is not None:
            with suppress(UnavailableError, TimeoutError):
                async with asyncio.timeout(_EARLY_S):
                    await self.hold(dataset, operation)
