"""What the core measures of itself; the adapter gives the numbers to Prometheus."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from weft_trainer.core.records import Measurement

__all__ = ["ActiveRun", "Gauges"]


@dataclass(frozen=True)
class ActiveRun:
    """
    A run whose ranks work, as the bucket has it.

    Args:
        run: Its id.
        checkpoint_s: When its newest checkpoint was complete, or when its ranks began, whichever is later; since 1970.
        checkpoint_interval_s: Expected time between two checkpoints; None where the run keeps only the last.
        num_steps: Steps wanted.
        peak_memory_bytes: Of all its ranks together.
    """

    run: str
    checkpoint_s: float
    checkpoint_interval_s: float | None
    num_steps: int
    peak_memory_bytes: int


class Gauges(Protocol):
    """Where figures about runs go. Only active runs, and not more than a bounded number, are labels."""

    def jobs(self, counts: dict[str, int]) -> None:
        """How many runs are in each state."""
        ...

    def pending(self, oldest_s: float) -> None:
        """For how long the run that waits longest for its ranks has waited; 0 where none waits."""
        ...

    def active(self, runs: Sequence[ActiveRun]) -> None:
        """Which runs are active; what is known of any other is forgotten."""
        ...

    def restarted(self, reason: str) -> None:
        """An attempt ended and another begins: `bad_exit`, `disappeared`, `disrupted` or `stopped`."""
        ...

    def damaged(self) -> None:
        """Ranks left a damaged checkpoint for an older one."""
        ...

    def checkpointed(self, run: str, moment_s: float) -> None:
        """A checkpoint is complete, in seconds since 1970."""
        ...

    def trained(self, run: str, metrics: Measurement, step_tokens: int) -> None:
        """A step was reported."""
        ...
