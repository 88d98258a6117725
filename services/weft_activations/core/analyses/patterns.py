"""
Attention patterns of chosen layers, heads and positions, a few layers a pass, so that a long prompt fits as well.

A model of speech has three kinds: its encoder's frames look at frames, its decoder's tokens at tokens and at frames.

Legend: H heads, Q positions that attend, K positions that they look at.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from weft_activations.core.analyses.choosing import choose
from weft_activations.core.changing import Prompt
from weft_activations.core.hooks import hook_shape
from weft_activations.core.inference import Inference, read_input
from weft_activations.core.ports import Floats, ModelBackend, ModelInfo, ModelInput
from weft_activations.core.speech import speech_of
from weft_activations.core.token_texts import TokenText, tokens_of_run
from weft_common.errors import InvalidArgumentError

__all__ = ["AttentionKind", "PatternsStart", "attention_patterns"]

_MAX_REPLY_BYTES = 8 << 30


class AttentionKind(Enum):
    """What looks at what."""

    TOKENS = "tokens"
    FRAMES = "frames"
    CROSS = "cross"


_OF_SPEECH = {
    AttentionKind.TOKENS: "decoder.layers.{}.attn.pattern",
    AttentionKind.FRAMES: "encoder.layers.{}.attn.pattern",
    AttentionKind.CROSS: "decoder.layers.{}.cross.pattern",
}


@dataclass(frozen=True)
class PatternsStart:
    """What is read, in order; `hooks` are one a layer, and positions are frames where frames attend."""

    info: ModelInfo
    tokens: list[TokenText]
    kind: AttentionKind
    layers: tuple[int, ...]
    hooks: tuple[str, ...]
    heads: tuple[int, ...]
    positions: tuple[int, ...]


async def attention_patterns(
    inference: Inference,
    model_id: str,
    prompt: Prompt,
    *,
    kind: AttentionKind = AttentionKind.TOKENS,
    layers: Sequence[int] = (),
    heads: Sequence[int] = (),
    positions: Sequence[int] = (),
) -> AsyncGenerator[PatternsStart | tuple[str, Floats], None]:
    """
    Read patterns; first what is read, then each hook with its [H, Q, K].

    Raises:
        InvalidArgumentError: There is no such kind, layer, head or position, or the answer would be too large.
        ResourceExhaustedError: One layer's pattern is more than a pass may hold.
    """

    def open_prompt(backend: ModelBackend) -> tuple[PatternsStart, ModelInput, int]:
        info, given = read_input(backend, model_id, prompt)
        name = _hook_of(kind, info)
        num_layers = info.num_layers
        if info.speech is not None and kind is AttentionKind.FRAMES:
            num_layers = info.speech.num_layers
        num_heads, attending, looked_at = hook_shape(name.format(0), info, len(given.token_ids))
        chosen = choose(layers, num_layers, "layer", "layers")
        start = PatternsStart(
            info,
            tokens_of_run(backend, model_id, given.token_ids),
            kind,
            chosen,
            tuple(name.format(layer) for layer in chosen),
            choose(heads, num_heads, "head", "heads"),
            choose(positions, attending, "position", "positions"),
        )
        reply = 4 * len(start.layers) * len(start.heads) * len(start.positions) * looked_at
        if reply > _MAX_REPLY_BYTES:
            raise InvalidArgumentError(
                f"these patterns take {reply} bytes, more than {_MAX_REPLY_BYTES}; "
                "name fewer layers, heads or positions",
                field="layers",
            )
        return start, given, inference.check_size([start.hooks[0]], info, len(given.token_ids))

    start, given, layer_bytes = await inference.on_model_thread(open_prompt)
    yield start
    at_once = max(1, inference.max_capture_bytes // layer_bytes)
    for first in range(0, len(start.hooks), at_once):
        group = start.hooks[first : first + at_once]

        def read(backend: ModelBackend, group: tuple[str, ...] = group) -> list[Floats]:
            if given.spectrogram is None:
                found = backend.forward(model_id, given.token_ids, group)
            else:
                features_NS = given.spectrogram.features_NS
                found = speech_of(backend).forward_speech(model_id, features_NS, given.token_ids, group)
            chosen = np.ix_(start.heads, start.positions)
            return [np.ascontiguousarray(found.pop(hook)[chosen]) for hook in group]

        for hook, pattern_HQK in zip(group, await inference.on_model_thread(read), strict=True):
            yield hook, pattern_HQK


def _hook_of(kind: AttentionKind, info: ModelInfo) -> str:
    """Return the hook, with braces in the place of the layer."""
    if info.speech is not None:
        return _OF_SPEECH[kind]
    if kind is not AttentionKind.TOKENS:
        raise InvalidArgumentError(
            f"{info.model_id} ({info.architecture}) reads no audio, so no frames attend or are looked at; leave the "
            "kind out",
            field="kind",
        )
    return "layers.{}.attn.pattern"
