"""What a named recipe is: settings that somebody published, at a size that the user chooses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from weft_clt.config import BatchConfig, MeshConfig, RecordConfig, TrainingConfig

__all__ = ["DEAD_AFTER_TOKENS", "Recipe", "RunSize", "warmup_within"]

DEAD_AFTER_TOKENS = 10_000_000
"""Tokens without firing after which a feature counts as dead, as EleutherAI/clt-training has it."""


@dataclass(frozen=True)
class RunSize:
    """
    What a recipe leaves open.

    Args:
        dataset: `datasets/{dataset}`.
        num_features: Features a layer.
        top_k: For recipes that count.
    """

    dataset: str
    num_features: int = 512
    num_steps: int = 60
    step_tokens: int = 1024
    feature_ranks: int = 1
    data_ranks: int = 1
    top_k: int = 32
    checkpoint_steps: int = 1000
    seed: int = 1

    def batch(self) -> BatchConfig:
        """Return the data that a step takes."""
        return BatchConfig(
            dataset=self.dataset,
            num_steps=self.num_steps,
            step_tokens=self.step_tokens,
            dead_after_tokens=DEAD_AFTER_TOKENS,
            seed=self.seed,
        )

    def mesh(self) -> MeshConfig:
        """Return how ranks are laid out."""
        return MeshConfig(feature_ranks=self.feature_ranks, data_ranks=self.data_ranks)

    def records(self) -> RecordConfig:
        """Return when the run is saved; it is evaluated at its end."""
        return RecordConfig(checkpoint_steps=self.checkpoint_steps, evaluation_steps=0, evaluation_tokens=0)


@dataclass(frozen=True)
class Recipe:
    """
    A recipe by its name.

    Args:
        summary: One line, for a list.
        source: Where its settings were published.
        input_hook: What its features read, which the dataset decides: `mlp_in` or `resid_mid`; empty where it is open.
        deviations: What is different here, and why.
        make: Gives the settings at a size.
    """

    name: str
    summary: str
    source: str
    input_hook: str
    deviations: str
    make: Callable[[RunSize], TrainingConfig]


def warmup_within(steps: int, size: RunSize) -> int:
    """
    Return a published number of warm-up steps, at most a tenth of the run.

    >>> warmup_within(1000, RunSize("datasets/d", num_steps=200))
    20
    """
    return min(steps, size.num_steps // 10)
