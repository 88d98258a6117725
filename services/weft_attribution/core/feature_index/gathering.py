"""
What is gathered of some features of one layer while a dataset goes by, block after block.

Everything is a fold over blocks in their order, so that it may stop after any of them, be stored, and go on elsewhere.
Histograms have half octaves: bin b counts activations from 2^((b - 24) / 2) up to the next bin's; the first and the
last take what lies beyond.

Legend: F features of the part, P positions of a block, B bins, N active (position, feature) pairs, D positions drawn
for co-activation, C candidates, one a tile and feature, W tokens of a window.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from weft_attribution.core.feature_index.best import BestStretches
from weft_attribution.core.feature_index.hashing import draw
from weft_attribution.core.feature_index.loops import fold
from weft_attribution.core.feature_index.settings import IndexSettings
from weft_attribution.core.feature_index.text import Block, Text, window_starts

__all__ = ["CHUNK", "NUM_BINS", "BlockText", "PartState", "bin_edges"]

Array = npt.NDArray[Any]
NUM_BINS = 48
_ZERO_BIN = 24
CHUNK = 2048
"""Features of one matrix product. Parts begin at multiples of it, so that how they are cut changes no bit."""
_PAIRS_A_CHUNK = 64
"""Of a token that is drawn for co-activation, at most so many features of a chunk count, the strongest."""
_SAMPLE = 0x73


def bin_edges() -> Array:
    """Where the bins begin, and where the last ends: [B + 1]."""
    return np.asarray(2.0 ** ((np.arange(NUM_BINS + 1) - _ZERO_BIN) / 2))


@dataclass(frozen=True)
class BlockText:
    """
    What the features of all layers need to know of a block.

    Args:
        block: The block.
        start_N: Where sequences begin in all positions.
        kept_P: Whether the dataset holds each position.
        tile_P: Number of each position's tile.
        pool_P: Place of that tile in the pool of quiet windows; -1 where it is not there.
        pair_P: Place among the positions drawn for co-activation; -1 where it is not there.
    """

    block: Block
    start_N: Array
    kept_P: Array
    tile_P: Array
    pool_P: Array
    pair_P: Array

    @classmethod
    def of(
        cls, text: Text, block: Block, settings: IndexSettings, pool: Array, pairs: Array, bases: Array
    ) -> "BlockText":
        """Look a block up; `pool` and `pairs` are the tiles and positions that were drawn."""
        positions = np.arange(block.low, block.high)
        sequence = np.searchsorted(text.start_N, positions, side="right") - 1
        tile_P = bases[sequence] + (positions - text.start_N[sequence]) // settings.window_tokens
        return cls(
            block,
            text.start_N,
            text.kept_P[block.low : block.high],
            tile_P,
            _places(pool, tile_P),
            _places(pairs, positions),
        )


def _places(rising: Array, wanted: Array) -> Array:
    """Where each stands in a rising list; -1 where it does not."""
    if not len(rising):
        return np.full(len(wanted), -1)
    at = np.minimum(np.searchsorted(rising, wanted), len(rising) - 1)
    return np.asarray(np.where(rising[at] == wanted, at, -1))


class PartState:
    """
    What is known so far of the features `low` to `high` of one layer.

    Args:
        layer: The layer.
        low: The first feature; a multiple of `CHUNK`.
        high: The one after the last.
        settings: What is kept.

    Attributes:
        num_spans: Spans of the text that are in it.
        count_F: Tokens on which each was active.
        total_F: Sum of its activations, float64.
        largest_F: The largest of them; 0 where there is none.
        histogram_FB: How many fell into each bin.
        fired_FQ: Bits, the lowest first: whether it was active in each window of the pool.
        top: Strongest stretches.
        sample: Stretches drawn from all where it is active.
    """

    def __init__(self, layer: int, low: int, high: int, settings: IndexSettings) -> None:
        num_features = high - low
        self.layer, self.low, self.high = layer, low, high
        self._settings = settings
        self.num_spans = 0
        self.count_F = np.zeros(num_features, np.int64)
        self.total_F = np.zeros(num_features, np.float64)
        self.largest_F = np.full(num_features, -np.inf, np.float32)
        self.histogram_FB = np.zeros((num_features, NUM_BINS), np.int64)
        self.fired_FQ = np.zeros((num_features, settings.pool_windows // 8), np.uint8)
        width = settings.window_tokens
        self.top = BestStretches(num_features, settings.num_top, width, np.float32(np.inf))
        self.sample = BestStretches(num_features, settings.num_sampled, width, np.uint64(np.iinfo(np.uint64).max))
        self._pairs: list[Array] = []

    @staticmethod
    def bytes_of_one(settings: IndexSettings) -> int:
        """Bytes that one feature takes, and as much again while a state is stored or taken back."""
        kept = settings.num_top * (17 + 2 * settings.window_tokens)
        kept += settings.num_sampled * (21 + 2 * settings.window_tokens)
        pairs = settings.coactivation_tokens * _PAIRS_A_CHUNK * 8 // CHUNK
        return 2 * (20 + 8 * NUM_BINS + settings.pool_windows // 8 + kept + pairs)

    def pairs(self) -> Array:
        """Which features are active on each position drawn for co-activation: [n, 2], place and index in the layer."""
        if len(self._pairs) != 1:
            self._pairs = [np.concatenate([np.zeros((0, 2), np.int32), *self._pairs])]
        return self._pairs[0]

    def add(self, text: BlockText, stream_PD: Tensor, w_enc_FD: Tensor, b_enc_F: Tensor, threshold_F: Tensor) -> None:
        """
        Take a block in.

        Args:
            text: The block; blocks come in the order of their positions.
            stream_PD: What the encoder reads, float32; anything where the dataset holds no token.
            w_enc_FD: Encoder of the part's features.
            b_enc_F: Its bias.
            threshold_F: Activation is the pre-activation where that is above this, and zero elsewhere.
        """
        for low in range(0, self.high - self.low, CHUNK):
            part = slice(low, min(low + CHUNK, self.high - self.low))
            pre_FP = torch.addmm(b_enc_F[part, None], w_enc_FD[part], stream_PD.T)
            self._add_chunk(text, part, pre_FP.numpy(), threshold_F[part].numpy())

    def _add_chunk(self, text: BlockText, part: slice, pre_FP: Array, threshold_F: Array) -> None:
        self._add_pairs(text, part.start, pre_FP, threshold_F)
        # One candidate a tile and feature: its largest activation, the first of equals.
        most = len(pre_FP) * (int(text.tile_P[-1] - text.tile_P[0]) + 1)
        feature_C, position_C = np.empty(most, np.int64), np.empty(most, np.int64)
        peak_C = np.empty(most, np.float32)
        found = fold(
            pre_FP, pre_FP.view(np.int32), threshold_F, text.kept_P, text.tile_P, _ZERO_BIN,
            self.count_F[part], self.total_F[part], self.largest_F[part], self.histogram_FB[part],
            feature_C, position_C, peak_C,
        )  # fmt: skip
        acts_FP, feature_C, position_C, peak_C = pre_FP, feature_C[:found], position_C[:found], peak_C[:found]

        pool_C = text.pool_P[position_C]
        in_pool = np.flatnonzero(pool_C >= 0)
        pool_C = pool_C[in_pool]
        bits = np.left_shift(1, pool_C & 7).astype(np.uint8)
        np.bitwise_or.at(self.fired_FQ, (part.start + feature_C[in_pool], pool_C >> 3), bits)

        def windows(chosen_C: Array) -> Array:
            return _windows(text, acts_FP, feature_C[chosen_C], position_C[chosen_C], peak_C[chosen_C], self._settings)

        of_part_C, everywhere_C = part.start + feature_C, position_C + text.block.low
        self.top.add(of_part_C, -peak_C, everywhere_C, peak_C, windows)
        keys_C = draw(self._settings.seed, _SAMPLE, self.layer, self.low + of_part_C, everywhere_C)
        self.sample.add(of_part_C, keys_C, everywhere_C, peak_C, windows)

    def _add_pairs(self, text: BlockText, low: int, pre_FP: Array, threshold_F: Array) -> None:
        drawn_D = np.flatnonzero(text.pair_P >= 0)
        pre_FD = pre_FP[:, drawn_D]
        feature_N, place_N = np.nonzero(pre_FD > threshold_F[:, None])
        if not len(feature_N):
            return
        value_N, pair_N = pre_FD[feature_N, place_N], text.pair_P[drawn_D[place_N]]
        order = np.lexsort((feature_N, -value_N, pair_N))
        _, first, which = np.unique(pair_N[order], return_index=True, return_inverse=True)
        order = order[np.arange(len(order)) - first[which] < _PAIRS_A_CHUNK]
        features = self.low + low + feature_N[order]
        self._pairs.append(np.stack([pair_N[order], features], axis=1).astype(np.int32))

    def arrays(self) -> Mapping[str, Array]:
        """All of it by name, to be stored."""
        return {
            "num_spans": np.array([self.num_spans], np.int64),
            "count": self.count_F,
            "total": self.total_F,
            "largest": self.largest_F,
            "histogram": self.histogram_FB,
            "fired": self.fired_FQ,
            "pairs": self.pairs(),
            **{f"top.{name}": array for name, array in self.top.arrays().items()},
            **{f"sample.{name}": array for name, array in self.sample.arrays().items()},
        }

    def restore(self, arrays: Mapping[str, Array]) -> None:
        """Take back what `arrays` gave."""
        self.num_spans = int(arrays["num_spans"][0])
        self.count_F, self.total_F = arrays["count"].copy(), arrays["total"].copy()
        self.largest_F, self.histogram_FB = arrays["largest"].copy(), arrays["histogram"].copy()
        self.fired_FQ, self._pairs = arrays["fired"].copy(), [arrays["pairs"].copy()]
        for kept, name in ((self.top, "top."), (self.sample, "sample.")):
            kept.restore({key.removeprefix(name): array for key, array in arrays.items() if key.startswith(name)})


def _windows(
    text: BlockText, acts_FP: Array, feature_C: Array, position_C: Array, peak_C: Array, settings: IndexSettings
) -> Array:
    """Activations around candidates over their peaks, zero past the end of a sequence: float16 [C, W]."""
    width, low = settings.window_tokens, text.block.low
    start_C = window_starts(text.start_N, position_C + low, width)
    end_C = text.start_N[np.searchsorted(text.start_N, start_C, side="right")]
    places_CW = start_C[:, None] + np.arange(width)
    inside_CW = places_CW < end_C[:, None]
    acts_CW = acts_FP[feature_C[:, None], np.minimum(places_CW - low, acts_FP.shape[1] - 1)]
    limits = np.finfo(np.float16)
    peak_C1 = np.where(peak_C == 0, 1, peak_C)[:, None]
    ratios_CW = np.clip(np.where(inside_CW, acts_CW, 0) / peak_C1, limits.min, limits.max)
    return np.asarray(ratios_CW.astype(np.float16))
