"""
Tokens after a prompt, with changes made in every pass.

What a model keeps of the tokens that it read, its keys and values, is bounded for all generations together. A step is
one turn on the models' thread, so that other work comes in between; leaving the loop frees what is kept.

Legend: P positions of the prompt, V vocabulary.
"""

import math
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial

import numpy as np

from weft_activations.core.changing import Change, Prompt
from weft_activations.core.components import component_at
from weft_activations.core.inference import Inference, LikelyToken
from weft_activations.core.kinds import check_decoder
from weft_activations.core.ports import Decoding, Floats, Intervention, ModelBackend, ModelInfo
from weft_activations.core.token_texts import TokenText
from weft_common.errors import FailedPreconditionError, InvalidArgumentError, ResourceExhaustedError
from weft_common.token_texts import TextStream

__all__ = ["End", "Generated", "Generation", "Sampling"]

_BYTES = {"float32": 4, "bfloat16": 2}


class End(Enum):
    """Why a token is the last."""

    LENGTH = "length"
    STOP = "stop"


@dataclass(frozen=True)
class Sampling:
    """
    How the next token is chosen.

    Attributes:
        max_new_tokens: Most tokens.
        temperature: Divides logits; 0 takes the most likely token.
        top_k: Draws among so many; 0 means all.
        seed: Decides what is drawn.
        stop_token_ids: Ends after one of these.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()

    def check(self) -> None:
        """
        Check what needs no model.

        Raises:
            InvalidArgumentError: A number is out of its range.
        """
        if self.max_new_tokens < 1:
            raise InvalidArgumentError(
                f"max_new_tokens is {self.max_new_tokens}; ask for 1 at least", field="max_new_tokens"
            )
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InvalidArgumentError(
                f"temperature is {self.temperature}; give 0 for the most likely token, or a positive number",
                field="temperature",
            )
        if self.top_k < 0:
            raise InvalidArgumentError(f"top_k is {self.top_k}; give 0 for all tokens, or how many", field="top_k")


@dataclass(frozen=True)
class Generated:
    """A token; `end` on the last, `prompt` with the first."""

    likely: LikelyToken
    end: End | None
    prompt: list[TokenText]


class Generation:
    """
    Generates, for many callers at once.

    Args:
        inference: Has the models' thread.
        max_bytes: Most that all generations together keep of their tokens.
    """

    def __init__(self, inference: Inference, *, max_bytes: int) -> None:
        self._inference = inference
        self._max_bytes = max_bytes
        self._kept_bytes = 0

    @property
    def kept_bytes(self) -> int:
        """What the generations of this moment may keep."""
        return self._kept_bytes

    async def generate(
        self, model_id: str, prompt: Prompt, changes: Sequence[Change], sampling: Sampling
    ) -> AsyncGenerator[Generated, None]:
        """
        Generate token after token.

        Raises:
            InvalidArgumentError: Something asked for does not fit.
            ResourceExhaustedError: The generations of this moment keep too much.
            FailedPreconditionError: The model is no decoder, or a logit is no number.
        """
        sampling.check()
        checked = await self._inference.check(model_id, prompt, changes)
        info, token_ids = checked.info, checked.token_ids
        check_decoder(info, "generation")
        total = len(token_ids) + sampling.max_new_tokens
        if total > info.max_tokens:
            raise InvalidArgumentError(
                f"the prompt has {len(token_ids)} tokens and {sampling.max_new_tokens} are to be generated; {model_id} "
                f"takes {info.max_tokens} together",
                field="max_new_tokens",
            )
        interventions = [
            _for_generation(intervention, index, len(token_ids))
            for index, intervention in enumerate(checked.interventions)
        ]
        with self._room(info, total):
            rng = np.random.default_rng(sampling.seed)
            decoding = await self._inference.on_model_thread(lambda backend: backend.decoding(model_id, interventions))
            read: Sequence[int] = token_ids
            text = TextStream()
            for count in range(1, sampling.max_new_tokens + 1):
                logits_V = await self._inference.on_model_thread(partial(_step, decoding, read))
                if np.isnan(logits_V).any():
                    raise FailedPreconditionError(
                        f"the logits of token {count} are NaN; run the prompt with the same interventions to see where "
                        "that begins",
                        field="interventions",
                    )
                chosen = _choose(logits_V, sampling, rng)
                end = End.LENGTH if count == sampling.max_new_tokens else None
                end = End.STOP if chosen in sampling.stop_token_ids else end
                (likely,) = await self._inference.likely(model_id, logits_V, [chosen])
                # What is told already cannot be changed: a character stands at the token that makes it whole.
                told = replace(likely.token, text=text.read(likely.token.piece, is_last=end is not None))
                yield Generated(replace(likely, token=told), end, checked.tokens if count == 1 else [])
                if end is not None:
                    return
                read = [chosen]

    @contextmanager
    def _room(self, info: ModelInfo, num_tokens: int) -> Iterator[None]:
        size = 2 * info.num_layers * info.num_kv_heads * info.d_head * num_tokens * _BYTES[info.data_type]
        if self._kept_bytes + size > self._max_bytes:
            raise ResourceExhaustedError(
                f"this generation of {num_tokens} tokens would keep {size} bytes, and others keep {self._kept_bytes} "
                f"of the {self._max_bytes} that all may; try again once they have ended, or ask for fewer tokens",
                field="max_new_tokens",
            )
        self._kept_bytes += size
        try:
            yield
        finally:
            self._kept_bytes -= size


def _step(decoding: Decoding, token_ids: Sequence[int], backend: ModelBackend) -> Floats:
    return decoding.step(token_ids)


def _for_generation(intervention: Intervention, index: int, num_positions: int) -> Intervention:
    """Pin a change that has a value for each position of the prompt to these positions."""
    dims = component_at(intervention.name).dims
    if dims.endswith("PP"):
        raise InvalidArgumentError(
            f"{intervention.name} cannot be changed while generating, since its shape grows; change attn.q, attn.k or "
            "attn.z",
            field=f"interventions[{index}].hook",
        )
    from_end = len(dims) - dims.index("P")
    value: Floats | None = intervention.value
    by_position = value is not None and value.ndim >= from_end and value.shape[-from_end] > 1
    if by_position and not intervention.positions:
        return replace(intervention, positions=tuple(range(num_positions)))
    return intervention


def _choose(logits_V: Floats, sampling: Sampling, rng: np.random.Generator) -> int:
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    order = np.argsort(-logits_V, kind="stable")[: sampling.top_k or None]
    scaled = logits_V[order].astype(np.float64) / sampling.temperature
    weights = np.exp(scaled - scaled.max())
    return int(order[np.searchsorted(np.cumsum(weights) / weights.sum(), rng.random(), side="right")])
