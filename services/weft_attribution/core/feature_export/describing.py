"""
Everything that files say of some neighbouring features, gathered in one reading each of index and transcoder.

Legend: N features of a part, D d_model, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from weft_attribution.core.feature_cards import TokenWeights, extreme_logits, logit_effects
from weft_attribution.core.feature_export.distribution import Distribution
from weft_attribution.core.feature_index.opened import OpenIndex
from weft_attribution.core.feature_ports import Examples, Window
from weft_attribution.core.transcoder import TranscoderReader
from weft_attribution.core.weights import LinearWeights
from weft_common.errors import DataLossError

__all__ = ["Described", "Group", "describe", "groups_of", "token_ids_of"]

Array = npt.NDArray[Any]
Bars = tuple[Array, Array]
LOGIT_BARS = 50
_EFFECT_VALUES = 1 << 22
_NO_BARS: Bars = np.zeros(0), np.zeros(0)


@dataclass(frozen=True)
class Group:
    """Windows of one kind: the strongest where `quantile` is -1, else drawn ones, 0 being the weakest quantile."""

    quantile: int
    windows: tuple[Window, ...]


@dataclass(frozen=True)
class Described:
    """
    One feature.

    Args:
        layer: Layer that it reads.
        index: Index within it.
        density: Share of tokens on which it is active.
        activations: Where it is active.
        groups: Its windows, strongest first.
        top: Logits that it raises most.
        bottom: Logits that it lowers most.
        logit_bars: Middles and heights of a histogram of its effects on all logits; empty where it is not wanted.
    """

    layer: int
    index: int
    density: float
    activations: Distribution
    groups: tuple[Group, ...]
    top: TokenWeights
    bottom: TokenWeights
    logit_bars: Bars


def describe(
    index: OpenIndex,
    transcoder: TranscoderReader,
    weights: LinearWeights,
    layer: int,
    low: int,
    high: int,
    num_logits: int,
    *,
    with_bars: bool,
) -> list[Described]:
    """Describe the features `low` to `high` of a layer, with a histogram of all logits where it is wanted; blocks."""
    written_ND = _written(transcoder, layer, low, high)
    logits = _logits(weights, written_ND, num_logits, with_bars=with_bars)
    found = []
    for number, ((histogram, examples), (top, bottom, bars)) in enumerate(
        zip(index.many(layer, low, high), logits, strict=True), start=low
    ):
        place = index.number(layer, number)
        found.append(
            Described(
                layer=layer,
                index=number,
                density=float(index.columns["density"][place]),
                activations=Distribution(histogram, float(index.columns["largest"][place])),
                groups=groups_of(examples),
                top=top,
                bottom=bottom,
                logit_bars=bars,
            )
        )
    return found


def groups_of(examples: Examples) -> tuple[Group, ...]:
    """The strongest windows, then those drawn, from the strongest quantile down; none without windows."""
    groups = [Group(-1, examples.top)]
    for quantile in sorted({window.quantile for window in examples.by_quantile}, reverse=True):
        groups.append(Group(quantile, tuple(each for each in examples.by_quantile if each.quantile == quantile)))
    return tuple(group for group in groups if group.windows)


def token_ids_of(described: Sequence[Described]) -> list[int]:
    """Every token that is named, each once."""
    found = {
        token for each in described for group in each.groups for window in group.windows for token in window.token_ids
    }
    for each in described:
        found.update(token.id for token, _ in (*each.top, *each.bottom))
    return sorted(found)


def _written(transcoder: TranscoderReader, layer: int, low: int, high: int) -> Tensor:
    """What each feature writes to all layers together: [N, D]."""
    runs = transcoder.decoders(layer, np.arange(low, high, dtype=np.int64))
    written_ND = np.concatenate([rows.astype(np.float32).sum(axis=1) for _, rows in runs])
    odd = np.flatnonzero(~np.isfinite(written_ND).all(axis=1))
    if len(odd):
        raise DataLossError(
            f"the decoder of feature {layer}-{low + int(odd[0])} of transcoders/{transcoder.manifest.transcoder} holds "
            "what is no number; export the transcoder from its run again, or leave this layer out"
        )
    return torch.from_numpy(written_ND)


def _logits(
    weights: LinearWeights, written_ND: Tensor, num_logits: int, *, with_bars: bool
) -> Iterator[tuple[TokenWeights, TokenWeights, Bars]]:
    """Extremes and histogram of each feature's effects, a few at a time as the vocabulary allows."""
    step = max(1, _EFFECT_VALUES // len(weights.unembedding_VD))
    for low in range(0, len(written_ND), step):
        effect_NV = logit_effects(weights, written_ND[low : low + step])
        for (top, bottom), effect_V in zip(extreme_logits(effect_NV, num_logits), effect_NV, strict=True):
            yield top, bottom, _bars(effect_V) if with_bars else _NO_BARS


def _bars(effect_V: Tensor) -> Bars:
    heights, edges = np.histogram(effect_V.numpy(), bins=LOGIT_BARS)
    return (edges[1:] + edges[:-1]) / 2, heights
