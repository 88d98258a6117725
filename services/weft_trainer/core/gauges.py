"""What the core measures of itself; the adapter gives the numbers to Prometheus."""

from typing import Protocol

from weft_trainer.core.records import Measurement

__all__ = ["Gauges"]


class Gauges(Protocol):
    """Where figures about runs go. None is labelled by run."""

    def jobs(self, counts: dict[str, int]) -> None:
        """How many runs are in each state."""
        ...

    def restarted(self, reason: str) -> None:
        """An attempt ended and another begins: `bad_exit`, `disappeared`, `disrupted` or `stopped`."""
        ...

    def checkpointed(self, moment_s: float) -> None:
        """A checkpoint is complete, in seconds since 1970."""
        ...

    def trained(self, metrics: Measurement, step_tokens: int) -> None:
        """A step was reported."""
        ...
