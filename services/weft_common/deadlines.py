"""
The deadline of the call being served, so that calls to peers are given no more time than is left.

It lives in a context variable: gRPC runs every call in a task of its own, and work that outlives the call
(`weft_common.operations`) is started outside of it.
"""

import time
from contextvars import ContextVar

__all__ = ["bounded_timeout", "remaining_s", "set_deadline"]

_DEADLINE: ContextVar[float | None] = ContextVar("weft_deadline", default=None)


def set_deadline(seconds: float) -> None:
    """Say how many seconds the call of this task has left."""
    _DEADLINE.set(time.monotonic() + seconds)


def remaining_s() -> float | None:
    """Return the seconds left, never below zero; None outside of a call."""
    deadline = _DEADLINE.get()
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def bounded_timeout(wanted_s: float | None) -> float | None:
    """Return the wanted timeout of a call to a peer, or what is left where that is less."""
    left = remaining_s()
    if wanted_s is None or left is None:
        return left if wanted_s is None else wanted_s
    return min(wanted_s, left)
