"""
Encode and select in one kernel: pre-activations above a bound, listed without the matrix they come from.

A tile of [tokens, features] is multiplied on the matrix units, compared with its bounds, and compacted by prefix sums
within the tile; one atomic addition a tile claims room in the list. Which tile comes first is not determined, so the
list is sorted by (token, feature) afterwards: results are. Where the list outgrows its room, the count is still right,
and the tile pass is repeated with room enough.
Top-k goes through slices of features, each three times as wide as all before it: the smallest of the k best values so
far is the next slice's bound, so that every slice lists only some 3k entries a token, and `keep_largest` joins them.
Shapes: T tokens, D d_model, S features of this rank, M entries.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from weft_clt.kernels.sorted_lists import segment_starts
from weft_clt.kernels.triton_numbers import jit, rounded
from weft_clt.kernels.triton_top_k import keep_largest

__all__ = ["Encoder", "Tile"]

_INTERPRETED = bool(triton.knobs.runtime.interpret)
"""The interpreter multiplies the bits of bfloat16 numbers; there they are widened first."""


@dataclass(frozen=True)
class Tile:
    """How the matrix product is cut; powers of two, at least 16."""

    tokens: int = 128
    features: int = 128
    depth: int = 64
    num_warps: int = 8
    num_stages: int = 3

    @classmethod
    def of(cls, dtype: torch.dtype) -> Tile:
        """Float32 has no matrix unit that keeps its precision, so its tiles are smaller."""
        return cls() if dtype is torch.bfloat16 else cls(64, 64, 32, 4, 2)


@jit
def select_kernel(
    inputs: tl.tensor, weight: tl.tensor, bias: tl.tensor, feature_bound: tl.tensor, token_bound: tl.tensor,
    kept: tl.tensor, out_key: tl.tensor, out_value: tl.tensor, counter: tl.tensor, room: tl.tensor,
    num_tokens: tl.tensor, num_features: tl.tensor, d_model: tl.tensor, first_feature: tl.tensor,
    all_features: tl.tensor, TOKENS: tl.constexpr, FEATURES: tl.constexpr, DEPTH: tl.constexpr, WHOLE: tl.constexpr,
    WIDEN: tl.constexpr, BY_FEATURE: tl.constexpr, BY_TOKEN: tl.constexpr, KEEP: tl.constexpr,
) -> None:  # fmt: skip
    """
    List inputs . weight + bias where it is above all bounds.

    Programs that follow each other take the same features, so that weights are read from memory once.
    WHOLE: d_model is a multiple of DEPTH. WIDEN: multiply in float32 whatever the types.
    KEEP: also write all pre-activations to `kept`.
    """
    token_tiles = tl.cdiv(num_tokens, TOKENS)
    token = (tl.program_id(0) % token_tiles) * TOKENS + tl.arange(0, TOKENS)
    feature = (tl.program_id(0) // token_tiles) * FEATURES + tl.arange(0, FEATURES)
    # Beyond the edge the last row is read again and not listed: no masks in the loop.
    token_row = tl.minimum(token, num_tokens - 1).to(tl.int64) * d_model
    feature_row = tl.minimum(feature, num_features - 1).to(tl.int64) * d_model
    preact = tl.zeros([TOKENS, FEATURES], dtype=tl.float32)
    for first in range(0, d_model, DEPTH):
        depth = first + tl.arange(0, DEPTH)
        if WHOLE:
            x = tl.load(inputs + token_row[:, None] + depth[None, :])
            w = tl.load(weight + feature_row[None, :] + depth[:, None])
        else:
            inner = depth < d_model
            x = tl.load(inputs + token_row[:, None] + depth[None, :], mask=inner[None, :], other=0.0)
            w = tl.load(weight + feature_row[None, :] + depth[:, None], mask=inner[:, None], other=0.0)
        if WIDEN:
            preact = tl.dot(x.to(tl.float32), w.to(tl.float32), preact, input_precision="ieee")
        else:
            preact = tl.dot(x, w, preact)
    known = feature < num_features
    preact += tl.load(bias + feature, mask=known, other=0.0).to(tl.float32)[None, :]
    listed = (token < num_tokens)[:, None] & known[None, :]
    # Within a tile, places are of 32 bit: those of 64 would not fit the registers.
    corner = (tl.program_id(0) % token_tiles).to(tl.int64) * TOKENS * all_features + (
        first_feature + (tl.program_id(0) // token_tiles) * FEATURES
    )
    local = tl.arange(0, TOKENS)[:, None] * all_features + tl.arange(0, FEATURES)[None, :]
    if KEEP:
        tl.store(kept + corner + local, rounded(preact, kept.dtype.element_ty), mask=listed)
    if BY_FEATURE:
        listed = listed & (preact > tl.load(feature_bound + feature, mask=known, other=0.0).to(tl.float32)[None, :])
    if BY_TOKEN:
        bound = tl.load(token_bound + token, mask=token < num_tokens, other=0.0)
        listed = listed & (preact > bound[:, None])
    one = listed.to(tl.int32)
    in_row = tl.sum(one, 1)
    in_tile = tl.sum(in_row, 0)
    if in_tile > 0:
        base = tl.atomic_add(counter, in_tile.to(tl.int64))
        before_row = tl.cumsum(in_row, 0) - in_row
        place = before_row[:, None] + tl.cumsum(one, 1) - one
        fits = listed & (place < tl.minimum(room - base, in_tile))
        tl.store(out_key + base + place, corner + local, mask=fits)
        tl.store(out_value + base + place, preact, mask=fits)


class Encoder:
    """
    Lists pre-activations; remembers how much room the last list took.

    Args:
        tile: How the product is cut; by default by the type.
        first_slice: Features that top-k looks at before it has a bound.
    """

    def __init__(self, tile: Tile | None = None, *, first_slice: int = 1024) -> None:
        self._tile, self._first_slice, self._room = tile, first_slice, 1 << 12

    def above(
        self, inputs_TD: Tensor, w_enc_SD: Tensor, b_enc_S: Tensor, bound_S: Tensor, preact_TS: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """
        List the pre-activations above a bound a feature.

        Args:
            bound_S: Any floating type; compared in float32, before pre-activations are rounded.
            preact_TS: Receives all pre-activations, where they are wanted.

        Returns:
            Entries of a token, int32; the features, int64, by token and, within it, ascending; the pre-activations, of
            the inputs' type.
        """
        num_features = w_enc_SD.shape[0]
        key_M, value_M = self._listed(inputs_TD, w_enc_SD, b_enc_S, 0, num_features, preact_TS, bound_S=bound_S)
        key_M, order_M = torch.sort(key_M)
        return _by_token(key_M, value_M[order_M], inputs_TD, num_features)

    def largest(
        self, inputs_TD: Tensor, w_enc_SD: Tensor, b_enc_S: Tensor, top_k: int, preact_TS: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """
        List the `top_k` largest pre-activations of a token that are above 0, the smaller feature first among equals.

        Returns:
            As `above`.
        """
        num_tokens, num_features = inputs_TD.shape[0], w_enc_SD.shape[0]
        bound_T = torch.zeros(num_tokens, dtype=torch.float32, device=inputs_TD.device)
        kept_key_M = torch.empty(0, dtype=torch.int64, device=inputs_TD.device)
        kept_value_M = torch.empty(0, dtype=torch.float32, device=inputs_TD.device)
        first, width = 0, min(num_features, max(self._first_slice, 4 * top_k))
        while first < num_features:
            end = min(num_features, first + width)
            key_M, value_M = self._listed(
                inputs_TD, w_enc_SD[first:end], b_enc_S[first:end], first, num_features, preact_TS, bound_T=bound_T
            )
            key_M, order_M = torch.sort(torch.cat([kept_key_M, key_M]))
            value_M = torch.cat([kept_value_M, value_M])[order_M]
            starts_T1 = segment_starts(key_M // num_features, num_tokens)
            keep_M, bound_T = keep_largest(starts_T1, value_M, top_k)
            kept_key_M, kept_value_M = key_M[keep_M], value_M[keep_M]
            first, width = end, 3 * end
        return _by_token(kept_key_M, kept_value_M, inputs_TD, num_features)

    def _listed(
        self,
        inputs_TD: Tensor,
        w_enc_SD: Tensor,
        b_enc_S: Tensor,
        first_feature: int,
        all_features: int,
        preact_TS: Tensor | None,
        *,
        bound_S: Tensor | None = None,
        bound_T: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return token * all_features + feature and the pre-activation of every entry, in any order."""
        num_tokens, d_model = inputs_TD.shape
        num_features, device = w_enc_SD.shape[0], inputs_TD.device
        tile = self._tile or Tile.of(inputs_TD.dtype)
        counter = torch.zeros(1, dtype=torch.int64, device=device)
        while True:
            key_M = torch.empty(self._room, dtype=torch.int64, device=device)
            value_M = torch.empty(self._room, dtype=torch.float32, device=device)
            if num_tokens and num_features:
                grid = (triton.cdiv(num_tokens, tile.tokens) * triton.cdiv(num_features, tile.features),)
                select_kernel[grid](
                    inputs_TD, w_enc_SD, b_enc_S, b_enc_S if bound_S is None else bound_S,
                    b_enc_S if bound_T is None else bound_T, value_M if preact_TS is None else preact_TS,
                    key_M, value_M, counter, self._room,
                    num_tokens, num_features, d_model, first_feature, all_features,
                    TOKENS=tile.tokens, FEATURES=tile.features, DEPTH=tile.depth, WHOLE=d_model % tile.depth == 0,
                    WIDEN=_INTERPRETED or inputs_TD.dtype is not torch.bfloat16,
                    BY_FEATURE=bound_S is not None, BY_TOKEN=bound_T is not None,
                    KEEP=preact_TS is not None,
                    num_warps=tile.num_warps, num_stages=tile.num_stages,
                )  # fmt: skip
            found = int(counter)
            if found <= self._room:
                return key_M[:found], value_M[:found]
            self._room = found + found // 4
            counter.zero_()


def _by_token(key_M: Tensor, value_M: Tensor, inputs_TD: Tensor, num_features: int) -> tuple[Tensor, Tensor, Tensor]:
    starts_T1 = segment_starts(key_M // num_features, inputs_TD.shape[0])
    return starts_T1.diff(), key_M % num_features, value_M.to(inputs_TD.dtype)
