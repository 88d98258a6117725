"""
Attention patterns of chosen layers, heads and positions, a few layers a pass, so that a long prompt fits as well.

Legend: P positions of the prompt, H heads, Q positions that attend.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

import numpy as np

from weft_activations.core.analyses.choosing import choose
from weft_activations.core.changing import Prompt
from weft_activations.core.inference import Inference, TokenText, read_prompt, with_texts
from weft_activations.core.ports import Floats, ModelBackend, ModelInfo
from weft_common.errors import InvalidArgumentError

__all__ = ["PatternsStart", "attention_patterns"]

_MAX_REPLY_BYTES = 8 << 30


@dataclass(frozen=True)
class PatternsStart:
    """What is read, in order."""

    info: ModelInfo
    tokens: list[TokenText]
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    positions: tuple[int, ...]


async def attention_patterns(
    inference: Inference,
    model_id: str,
    prompt: Prompt,
    *,
    layers: Sequence[int] = (),
    heads: Sequence[int] = (),
    positions: Sequence[int] = (),
) -> AsyncGenerator[PatternsStart | tuple[int, Floats], None]:
    """
    Read patterns; first what is read, then each layer with its [H, Q, P].

    Raises:
        InvalidArgumentError: There is no such layer, head or position, or the answer would be too large.
        ResourceExhaustedError: One layer's pattern is more than a pass may hold.
    """

    def open_prompt(backend: ModelBackend) -> tuple[PatternsStart, list[int]]:
        info, token_ids = read_prompt(backend, model_id, prompt)
        start = PatternsStart(
            info,
            with_texts(backend, model_id, token_ids),
            choose(layers, info.num_layers, "layer", "layers"),
            choose(heads, info.num_heads, "head", "heads"),
            choose(positions, len(token_ids), "position", "positions"),
        )
        reply = 4 * len(start.layers) * len(start.heads) * len(start.positions) * len(token_ids)
        if reply > _MAX_REPLY_BYTES:
            raise InvalidArgumentError(
                f"these patterns take {reply} bytes, more than {_MAX_REPLY_BYTES}; "
                "name fewer layers, heads or positions",
                field="layers",
            )
        inference.check_size(["layers.0.attn.pattern"], info, len(token_ids))
        return start, token_ids

    start, token_ids = await inference.on_model_thread(open_prompt)
    yield start
    layer_bytes = 4 * start.info.num_heads * len(token_ids) ** 2
    at_once = max(1, inference.max_capture_bytes // layer_bytes)
    for first in range(0, len(start.layers), at_once):
        group = start.layers[first : first + at_once]

        def read(backend: ModelBackend, group: tuple[int, ...] = group) -> list[Floats]:
            hooks = [f"layers.{layer}.attn.pattern" for layer in group]
            found = backend.forward(model_id, token_ids, hooks)
            chosen = np.ix_(start.heads, start.positions)
            return [np.ascontiguousarray(found.pop(hook)[chosen]) for hook in hooks]

        for layer, pattern_HQP in zip(group, await inference.on_model_thread(read), strict=True):
            yield layer, pattern_HQP
