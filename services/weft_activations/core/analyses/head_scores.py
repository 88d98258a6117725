"""
Head scores: how much each head attends as an induction, previous-token or duplicate-token head would.

Source: Olsson et al. 2022, "In-context Learning and Induction Heads". Random tokens are read twice in a row, so that
only position and repetition can be followed.

Legend: L layers, H heads, P positions, n random tokens before they repeat.
"""

from dataclasses import dataclass

import numpy as np

from weft_activations.core.changing import Prompt
from weft_activations.core.inference import Inference
from weft_activations.core.ports import Array, Floats, ModelBackend, ModelInfo
from weft_activations.core.speech import check_text_alone
from weft_common.errors import InvalidArgumentError

__all__ = ["HeadScores", "repeated_tokens", "score_heads", "score_pattern"]

_DEFAULT_TOKENS, _MAX_TOKENS = 50, 512
_DEFAULT_SEQUENCES, _MAX_SEQUENCES = 4, 64


@dataclass(frozen=True)
class HeadScores:
    """Scores [L, H], 0 to 1."""

    info: ModelInfo
    num_tokens: int
    num_sequences: int
    induction_LH: Floats
    previous_token_LH: Floats
    duplicate_token_LH: Floats


def repeated_tokens(info: ModelInfo, num_tokens: int, seed: int, index: int) -> list[int]:
    """Draw different random tokens and repeat them, behind the start token where the model has one."""
    generator = np.random.default_rng((seed, index))
    start = [] if info.bos_token_id is None else [info.bos_token_id]
    # One more than wanted, so that the start token can be left out of them.
    drawn = generator.choice(info.vocab_size, num_tokens + len(start), replace=False).tolist()
    once = [token_id for token_id in drawn if token_id not in start][:num_tokens]
    return start + once + once


def score_pattern(pattern_HPP: Floats, num_tokens: int) -> tuple[Array, Array, Array]:
    """Return the induction, previous-token and duplicate-token scores [H] of patterns over repeated tokens."""
    second = np.arange(pattern_HPP.shape[1] - num_tokens, pattern_HPP.shape[1])
    later = np.arange(1, pattern_HPP.shape[1])
    return (
        pattern_HPP[:, second, second - num_tokens + 1].mean(-1),
        pattern_HPP[:, later, later - 1].mean(-1),
        pattern_HPP[:, second, second - num_tokens].mean(-1),
    )


async def score_heads(
    inference: Inference, model_id: str, *, num_tokens: int = 0, num_sequences: int = 0, seed: int = 0
) -> HeadScores:
    """
    Score every head of a model, one sequence a turn on the models' thread.

    Raises:
        FailedPreconditionError: A model of speech.
        InvalidArgumentError: Too many tokens or sequences, or more tokens than the vocabulary or the model has.
        ResourceExhaustedError: The patterns are more than a pass may hold.
    """
    for value, most, name in (
        (num_tokens, _MAX_TOKENS, "num_tokens"),
        (num_sequences, _MAX_SEQUENCES, "num_sequences"),
    ):
        if not 0 <= value <= most:
            raise InvalidArgumentError(f"{name} is {value}; give 0 to {most}", field=name)
    count, sequences = num_tokens or _DEFAULT_TOKENS, num_sequences or _DEFAULT_SEQUENCES
    info = await inference.describe(model_id)
    check_text_alone(info, Prompt(), "prompt")
    longest = 2 * count + (info.bos_token_id is not None)
    if count < 2 or longest > info.max_tokens or count + 1 > info.vocab_size:
        raise InvalidArgumentError(
            f"{count} tokens, twice, make {longest}; {model_id} takes {info.max_tokens} at most and has "
            f"{info.vocab_size} to draw from; give another num_tokens, 2 at least",
            field="num_tokens",
        )
    hooks = [f"layers.{layer}.attn.pattern" for layer in range(info.num_layers)]
    inference.check_size(hooks, info, longest)
    total_3LH = np.zeros((3, info.num_layers, info.num_heads))
    for index in range(sequences):

        def score(backend: ModelBackend, index: int = index) -> Array:
            found = backend.forward(model_id, repeated_tokens(info, count, seed, index), hooks)
            return np.stack([np.stack(score_pattern(found[hook], count)) for hook in hooks], 1)

        total_3LH += await inference.on_model_thread(score)
    mean_3LH = (total_3LH / sequences).astype(np.float32)
    return HeadScores(info, count, sequences, *mean_3LH)
