"""
What sweeps over a grid of cells share: two prompts of equal length, a metric, batches.

A cell is one forward pass with one patch; cells are run many a batch, and between batches the call can be cancelled
and other calls have their turn on the models' thread.

Legend: B cells of a batch, P positions, V vocabulary.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from weft_activations.core.analyses.choosing import check_token
from weft_activations.core.changing import Prompt
from weft_activations.core.inference import Inference, read_prompt
from weft_activations.core.kinds import check_decoder
from weft_activations.core.ports import Doubles, Floats, ModelBackend, ModelInfo
from weft_activations.core.token_texts import TokenText, tokens_of_run
from weft_common.errors import InvalidArgumentError

__all__ = ["CELLS_LIMIT", "Cells", "Metric", "MetricKind", "Pair", "measure", "read_pair", "run_cells"]

CELLS_LIMIT = 50_000
# Tokens of one batch, and bytes of its float64 logits.
_BATCH_TOKENS = 1024
_BATCH_LOGIT_BYTES = 64 << 20


class MetricKind(Enum):
    """What is measured of the last position's logits."""

    LOGIT_DIFFERENCE = "logit_difference"
    PROBABILITY = "probability"


@dataclass(frozen=True)
class Metric:
    """A number of a prediction: logit of a token minus that of another, or its probability."""

    kind: MetricKind
    token_id: int
    other_token_id: int = 0

    def check(self, info: ModelInfo) -> None:
        """Raise InvalidArgumentError where a token is none."""
        check_token(self.token_id, info, "metric.token_id")
        check_token(self.other_token_id, info, "metric.other_token_id")


@dataclass(frozen=True)
class Pair:
    """Two prompts of one length, read."""

    info: ModelInfo
    clean: list[TokenText]
    corrupted: list[TokenText]

    @property
    def clean_ids(self) -> list[int]:
        """Token ids of the prompt that patches come from."""
        return [token.token_id for token in self.clean]

    @property
    def corrupted_ids(self) -> list[int]:
        """Token ids of the prompt that is patched."""
        return [token.token_id for token in self.corrupted]


@dataclass(frozen=True)
class Cells:
    """The metric of some cells in the grid's row-major order, from the index `first`."""

    first: int
    values: Doubles


def read_pair(backend: ModelBackend, model_id: str, clean: Prompt, corrupted: Prompt) -> Pair:
    """
    Read both prompts.

    Raises:
        InvalidArgumentError: One cannot be read, or their lengths differ.
        FailedPreconditionError: The model is no decoder.
    """
    info, clean_ids = read_prompt(backend, model_id, clean, field="clean")
    check_decoder(info, "a sweep")
    _, corrupted_ids = read_prompt(backend, model_id, corrupted, field="corrupted")
    if len(clean_ids) != len(corrupted_ids):
        raise InvalidArgumentError(
            f"the clean prompt has {len(clean_ids)} tokens and the corrupted one {len(corrupted_ids)}; word them so "
            "that both have as many, since a position stands for the same place in both",
            field="corrupted",
        )
    return Pair(info, tokens_of_run(backend, model_id, clean_ids), tokens_of_run(backend, model_id, corrupted_ids))


def measure(metric: Metric, logits_BV: Floats) -> Doubles:
    """Return a metric [B] of logits."""
    wide_BV = logits_BV.astype(np.float64)
    if metric.kind is MetricKind.LOGIT_DIFFERENCE:
        return np.asarray(wide_BV[:, metric.token_id] - wide_BV[:, metric.other_token_id])
    wide_BV -= wide_BV.max(-1, keepdims=True)
    return np.asarray(np.exp(wide_BV[:, metric.token_id]) / np.exp(wide_BV).sum(-1))


async def run_cells(
    inference: Inference, info: ModelInfo, num_positions: int, num_cells: int, run: "RunBatch"
) -> AsyncGenerator[Cells, None]:
    """
    Run all cells of a grid in batches.

    Args:
        inference: Has the models' thread.
        info: The model.
        num_positions: Of the prompt.
        num_cells: In the grid.
        run: Runs the cells of these indices and returns their metric.
    """
    most = min(_BATCH_TOKENS // num_positions, _BATCH_LOGIT_BYTES // (8 * info.vocab_size))
    size = max(1, most)
    for first in range(0, num_cells, size):
        indices = range(first, min(first + size, num_cells))

        def work(backend: ModelBackend, indices: Sequence[int] = indices) -> Doubles:
            return run(backend, indices)

        yield Cells(first, await inference.on_model_thread(work))


RunBatch = Callable[[ModelBackend, Sequence[int]], Doubles]
"""Takes a backend and the indices of cells, and returns their metric."""
