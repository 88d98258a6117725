"""Attention patterns as an analysis: tokens or frames look at tokens or frames."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from weft.activations.v1 import analyses_pb2, speech_pb2
from weft_client.analysis import Analysis, along, texts

__all__ = ["ATTENTION_KINDS", "patterns_of"]

ATTENTION_KINDS: Mapping[str, analyses_pb2.AttentionKind.ValueType] = {
    "tokens": analyses_pb2.ATTENTION_KIND_TOKENS,
    "frames": analyses_pb2.ATTENTION_KIND_FRAMES,
    "cross": analyses_pb2.ATTENTION_KIND_CROSS,
}

Coords = dict[str, tuple[str, Sequence[Any]]]


def patterns_of(header: analyses_pb2.AttentionPatternsHeader, pattern: npt.NDArray[np.float32]) -> Analysis:
    """
    Name the dims of patterns.

    Args:
        header: What the service sent first.
        pattern: [layers, heads, positions, sources].
    """
    speech, tokens = header.model.speech, header.tokens
    coords: Coords = {"layer": ("layer", list(header.layers)), "head": ("head", list(header.heads))}
    frames = header.kind == analyses_pb2.ATTENTION_KIND_FRAMES
    coords |= _frames("frame", speech, header.positions) if frames else along(tokens, header.positions)
    sources = range(pattern.shape[-1])
    if frames or header.kind == analyses_pb2.ATTENTION_KIND_CROSS:
        coords |= _frames("source_frame", speech, sources)
    else:
        coords |= {"source": ("source", list(sources)), "source_token": ("source", texts(tokens))}
    dims = ("layer", "head", "frame" if frames else "position", "source" if "source" in coords else "source_frame")
    return Analysis(header.model, tokens, {"pattern": (dims, pattern)}, coords)


def _frames(dim: str, speech: speech_pb2.Speech, chosen: Sequence[int]) -> Coords:
    """Coordinates of frames: their indices, and the seconds at which they begin."""
    frame_s = speech.max_samples / speech.sampling_rate / speech.num_frames
    return {dim: (dim, list(chosen)), f"{dim}_s": (dim, [frame * frame_s for frame in chosen])}
