"""SIGTERM as a flag that the training loop looks at between steps."""

from __future__ import annotations

import signal
from types import FrameType

__all__ = ["StopFlag"]


class StopFlag:
    """Set once this process is asked to end."""

    def __init__(self) -> None:
        self.is_set = False

    def install(self) -> None:
        """Take over SIGTERM; SIGINT goes to the whole terminal and is the launcher's business."""
        signal.signal(signal.SIGTERM, self._set)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _set(self, signum: int, frame: FrameType | None) -> None:
        self.is_set = True
