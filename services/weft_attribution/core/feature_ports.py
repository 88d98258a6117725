"""
What is asked of an index of features by those who explain or show them, and what is read of a label.

Legend: W tokens of a window.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["ExampleSource", "ExampleSources", "Examples", "LabelRecord", "Window"]


@dataclass(frozen=True)
class Window:
    """
    A stretch of one sequence of a dataset, and what a feature does there.

    Args:
        sequence: Number of the sequence in the index.
        start: Position of the first token within the sequence.
        token_ids: The tokens, W of them.
        activations: Of the feature at each token, W; zero where it is not active, and where the dataset has no token.
        peak: The largest activation at the place that the window was taken for; 0 for a quiet one.
        peak_at: Place of that token among the W; -1 for a quiet one.
        quantile: 0 for the weakest activations up to the number of quantiles less 1 for the strongest; -1 where the
            window was not taken by quantile.
        sequence_mark: Hash of what its sequence begins with: the same for all windows of a text, wherever that stands.
            Empty where it is not known.
    """

    sequence: int
    start: int
    token_ids: tuple[int, ...]
    activations: tuple[float, ...]
    peak: float
    peak_at: int
    quantile: int = -1
    sequence_mark: str = ""


@dataclass(frozen=True)
class Examples:
    """
    What an index keeps of one feature's text.

    Args:
        num_active: Tokens on which it was active, of those that were read.
        num_tokens: Tokens that were read.
        top: Windows around its strongest activations, strongest first; no two around the same stretch of text.
        by_quantile: A sample of all stretches where it is active, weakest quantile first, strongest first within one.
    """

    num_active: int
    num_tokens: int
    top: tuple[Window, ...]
    by_quantile: tuple[Window, ...]


class ExampleSource(Protocol):
    """The newest whole index of one transcoder. Calls block."""

    @property
    def transcoder(self) -> str:
        """Id of the transcoder."""

    @property
    def model(self) -> str:
        """Id of the model whose tokens these are."""

    @property
    def index_id(self) -> str:
        """Which version of the index this is; what was explained from one can be told from another."""

    @property
    def num_quantiles(self) -> int:
        """How many quantiles `by_quantile` is cut into."""

    def examples(self, layer: int, index: int) -> Examples:
        """
        Windows where a feature is active.

        Raises:
            NotFoundError: There is no such feature in the index.
        """

    def quiet(self, layer: int, index: int, count: int) -> Sequence[Window]:
        """
        Up to `count` windows, drawn at random once for the index, in which the feature is nowhere active.

        Raises:
            NotFoundError: There is no such feature in the index.
        """


class ExampleSources(Protocol):
    """Indexes by transcoder. Calls block."""

    def open(self, transcoder: str, index_id: str = "") -> ExampleSource:
        """
        Open an index of a transcoder; without an id the newest whole one.

        Raises:
            NotFoundError: There is no such transcoder or index.
            FailedPreconditionError: It has no whole index yet.
        """


class LabelRecord(Protocol):
    """What is read of a label."""

    @property
    def text(self) -> str:
        """The label."""

    @property
    def origin(self) -> str:
        """`human` or `model`."""

    @property
    def explainer(self) -> str:
        """Model that said it, for models' labels."""

    @property
    def prompt_sha256(self) -> str:
        """Hash of the prompt that it was made with; labels of models from elsewhere may have none."""

    @property
    def scores(self) -> Mapping[Any, Any]:
        """Score by kind; each has a `value`, 0 to 1, and `n`, the number of trials behind it."""
