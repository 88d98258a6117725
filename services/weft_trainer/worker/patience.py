"""Trying again, for a while, what the bucket or the cache could not do just now."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from weft_common.errors import StorageFullError, WeftError
from weft_common.logging import get_logger

__all__ = ["patiently"]

T = TypeVar("T")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 15.0

_log = get_logger(__name__)


def patiently(work: Callable[[], T], what: str, bound_s: float, ended: threading.Event | None = None) -> T:
    """
    Do what may fail for a while, until it is done or `bound_s` are over; then raise its last error.

    Only errors that a retry may help are tried again, and a bucket that is full, where somebody may free space. Once
    `ended` is set nothing is tried again.
    """
    ended = ended or threading.Event()
    deadline, pause_s = time.monotonic() + bound_s, _FIRST_PAUSE_S
    while True:
        try:
            return work()
        except WeftError as error:
            left_s = deadline - time.monotonic()
            if not (error.retryable or isinstance(error, StorageFullError)) or left_s <= 0 or ended.is_set():
                raise
            _log.warning("tried_again", what=what, error=error.message, in_s=min(pause_s, left_s))
            ended.wait(min(pause_s, left_s))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
