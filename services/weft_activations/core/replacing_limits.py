"""What one call in which a caller stands in the place of MLPs may take from this service, from its start to its end."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from weft_common.errors import DeadlineExceededError, ResourceExhaustedError

__all__ = ["CallBudget", "CallLimits"]

_PATIENCE_S = 300.0


@dataclass(frozen=True)
class CallLimits:
    """
    Bounds of a call.

    Attributes:
        held_bytes: Most that its batch may hold from pass to pass.
        sent_bytes: Most that the caller may send, all messages together.
        passes: Most passes.
        call_s: Longest time, thinking, sending and receiving of the caller included.
        patience_s: Longest time that the caller may say nothing: what a batch holds is not free until it goes.
    """

    held_bytes: int
    sent_bytes: int
    passes: int
    call_s: float
    patience_s: float = _PATIENCE_S


class CallBudget:
    """
    What is left of one call's bounds; its time runs from here.

    Args:
        limits: The bounds.
    """

    def __init__(self, limits: CallLimits) -> None:
        self.limits = limits
        self._sent_bytes = self._passes = 0
        self._begun_s = time.monotonic()

    def take_message(self, num_bytes: int) -> None:
        """Count a message of the caller. ResourceExhaustedError."""
        self._sent_bytes += num_bytes
        if self._sent_bytes > self.limits.sent_bytes:
            raise ResourceExhaustedError(
                f"the caller has sent {self._sent_bytes} bytes in this call, more than the {self.limits.sent_bytes} "
                "that one call may; begin another call for further passes, with fewer sequences, or raise "
                "WEFT_ACTIVATIONS_MAX_REPLACE_BYTES"
            )

    def take_pass(self) -> None:
        """Count a pass. ResourceExhaustedError."""
        self._passes += 1
        if self._passes > self.limits.passes:
            raise ResourceExhaustedError(
                f"pass {self._passes} of this call was asked for, and one call may have {self.limits.passes}; begin "
                "another call for further passes, or raise WEFT_ACTIVATIONS_MAX_REPLACE_PASSES",
                field="plan",
            )

    @asynccontextmanager
    async def within_time(self) -> AsyncIterator[None]:
        """Bound the time of what is done within. DeadlineExceededError."""
        limit = asyncio.timeout(self.limits.call_s - (time.monotonic() - self._begun_s))
        try:
            async with limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise DeadlineExceededError(
                f"the call was not done after {self.limits.call_s:g} s, the most that one call may take; send fewer "
                "sequences at a time, or raise WEFT_ACTIVATIONS_MAX_REPLACE_S"
            ) from None
