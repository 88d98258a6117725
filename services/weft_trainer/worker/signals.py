"""SIGTERM: the end of a process that has nothing to save yet, and a flag that the training loop looks at later."""

from __future__ import annotations

import signal
import sys
from types import FrameType

__all__ = ["TERMINATED", "StopFlag", "exit_when_terminated"]

TERMINATED = 128 + signal.SIGTERM


def exit_when_terminated() -> None:
    """
    End at SIGTERM; SIGINT goes to the whole terminal and is the launcher's business.

    The first process of a container has no such default: it would not notice.
    """
    signal.signal(signal.SIGTERM, _exit)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _exit(signum: int, frame: FrameType | None) -> None:
    sys.exit(TERMINATED)


class StopFlag:
    """Set once this process is asked to end."""

    def __init__(self) -> None:
        self.is_set = False

    def install(self) -> None:
        """Take over SIGTERM."""
        signal.signal(signal.SIGTERM, self._set)

    def _set(self, signum: int, frame: FrameType | None) -> None:
        self.is_set = True
