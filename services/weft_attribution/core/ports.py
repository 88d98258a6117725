"""
What attribution needs from the outside: a base model that runs somewhere else, and the catalog of datasets.

Legend: P positions of the prompt, D d_model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

__all__ = [
    "Addition",
    "Capture",
    "DatasetHolds",
    "LikelyToken",
    "ModelInfo",
    "ModelRunner",
    "ProgressFn",
    "SteeredLogits",
    "Token",
]

ProgressFn = Callable[[str, int, int], None]
"""Called with a stage, the units done and the units in all; may raise to stop the work."""


@dataclass(frozen=True)
class ModelInfo:
    """A base model as the activations service describes it."""

    name: str
    architecture: str
    num_layers: int
    d_model: int
    vocab_size: int
    max_tokens: int
    revision: str


@dataclass(frozen=True)
class Token:
    """One token: its index into the vocabulary, and its text, of which that of a run is made up."""

    id: int
    text: str


@dataclass(frozen=True)
class Capture:
    """Streams of one forward pass, float32 by hook name."""

    model: ModelInfo
    tokens: tuple[Token, ...]
    tensors: Mapping[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Addition:
    """
    Vectors that are added to the MLP output of one layer, one a position.

    Without positions it is one vector, added at every position and at every token that is generated after them.
    """

    layer: int
    positions: tuple[int, ...]
    value_PD: npt.NDArray[np.float32]


@dataclass(frozen=True)
class LikelyToken:
    """A token that was generated, and how likely its run took it to be."""

    token: Token
    probability: float


@dataclass(frozen=True)
class SteeredLogits:
    """The last position of a run: asked logits and probabilities in order, and the mean logit of the vocabulary."""

    logits: tuple[float, ...]
    probabilities: tuple[float, ...]
    mean_logit: float


class ModelRunner(Protocol):
    """A base model that captures streams and runs prompts with additions to its MLP outputs."""

    async def model(self, name: str) -> ModelInfo:
        """
        Describe the model `models/{model}`.

        Raises:
            NotFoundError: There is no such model.
        """

    async def tokenize(self, model: str, text: str) -> tuple[Token, ...]:
        """Turn text into tokens, the model's own start token included."""

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> tuple[str, ...]:
        """Give the text of each token id alone; of a part of a character, U+FFFD."""

    async def pieces(self, model: str, token_ids: Sequence[int]) -> tuple[bytes, ...]:
        """Give the bytes of each token id: those of a run, one after the other, are its text in UTF-8."""

    async def capture(self, model: str, token_ids: Sequence[int], hooks: Sequence[str]) -> Capture:
        """Run a prompt once and return the asked streams; `layers.*.X` asks for every layer."""

    async def steer(
        self,
        model: str,
        token_ids: Sequence[int],
        additions: Sequence[Addition],
        *,
        held_layers: Sequence[int],
        freeze_attention: bool,
        hooks: Sequence[str],
    ) -> Capture:
        """
        Run a prompt with additions and return the asked streams.

        Args:
            model: The model.
            token_ids: The prompt.
            additions: Made on top of whatever the MLPs return.
            held_layers: Layers whose MLPs return what they do without the additions.
            freeze_attention: Whether patterns and norm scales are held too.
            hooks: As of `capture`.
        """

    async def run(
        self,
        model: str,
        token_ids: Sequence[int],
        additions: Sequence[Addition],
        *,
        frozen: bool,
        logits_of: Sequence[int],
    ) -> SteeredLogits:
        """Run a prompt with additions; `frozen` holds patterns, norm scales and MLP outputs at their clean values."""

    async def generate(
        self, model: str, token_ids: Sequence[int], additions: Sequence[Addition], *, max_new_tokens: int
    ) -> tuple[LikelyToken, ...]:
        """Go on after a prompt with the most likely token each time, with additions made in every pass."""


class DatasetHolds(Protocol):
    """The cache service, as far as long work needs it: it deletes no dataset that somebody holds."""

    async def hold(self, dataset: str, holder: str) -> None:
        """
        Keep a dataset from being deleted until its holder has ended; the same again is no error.

        Args:
            dataset: Its id.
            holder: `operations/{operation}`, which is in the bucket by now.

        Raises:
            NotFoundError: No such dataset, or it is being deleted.
            UnavailableError: The cache does not answer.
            DeadlineExceededError: It took too long to.
        """
