"""
One rank's share of a cross-layer transcoder.

The encoder is split by feature, the decoder by column of its output.
Shapes: L layers, F features of a layer over all ranks, S features of this rank, D d_model, C columns of this rank,
P pairs of a source and a target layer, source by source: L (L + 1) / 2 where features write to all from theirs on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from weft_clt.choices import ParameterType
from weft_common.errors import ShapeError

__all__ = ["Parameters", "Shape", "Share", "pair_index"]


@dataclass(frozen=True)
class Shape:
    """The dims of a whole transcoder."""

    num_layers: int
    num_features: int
    d_model: int
    decoder_span: int = 0
    """Layers that a feature writes to, its own the first; 0 means all from its own on."""

    @property
    def span(self) -> int:
        """Most layers that a feature writes to."""
        return min(self.decoder_span or self.num_layers, self.num_layers)

    @property
    def num_pairs(self) -> int:
        """P."""
        return pair_index(self.num_layers, self.num_layers, self.num_layers, self.span)

    def targets(self, source: int) -> range:
        """Layers that a layer's features write to."""
        return range(source, min(source + self.span, self.num_layers))

    def sources(self, target: int) -> range:
        """Layers whose features write to a layer."""
        return range(max(0, target - self.span + 1), target + 1)


def pair_index(num_layers: int, source: int, target: int, span: int = 0) -> int:
    """
    Return the place of a decoder block among the P pairs.

    >>> [pair_index(3, s, t) for s in range(3) for t in range(s, 3)]
    [0, 1, 2, 3, 4, 5]
    >>> [pair_index(3, s, t, span=2) for s in range(3) for t in range(s, min(s + 2, 3))]
    [0, 1, 2, 3, 4]
    """
    span = span or num_layers
    whole = min(source, num_layers - span)
    short = source - whole
    return whole * span + short * span - short * (short - 1) // 2 + target - source


@dataclass(frozen=True)
class Share:
    """What part of the features and columns one rank of R holds."""

    shape: Shape
    rank: int
    size: int

    def __post_init__(self) -> None:
        for what, number in (("features", self.shape.num_features), ("columns", self.shape.d_model)):
            if number % self.size:
                raise ShapeError(
                    f"{number} {what} cannot be split evenly over {self.size} feature ranks; change one of the two."
                )

    @property
    def num_features(self) -> int:
        """S."""
        return self.shape.num_features // self.size

    @property
    def num_columns(self) -> int:
        """C."""
        return self.shape.d_model // self.size

    @property
    def features(self) -> slice:
        """Features of this rank among all."""
        return slice(self.rank * self.num_features, (self.rank + 1) * self.num_features)

    @property
    def columns(self) -> slice:
        """Columns of this rank among all."""
        return slice(self.rank * self.num_columns, (self.rank + 1) * self.num_columns)


@dataclass(frozen=True)
class Parameters:
    """
    The tensors of one rank, or anything of their shapes: gradients, moments.

    A transcoder's weights, `w_enc_LSD` and `w_dec_PFC`, may be bfloat16 beside wider others.
    """

    share: Share
    w_enc_LSD: Tensor
    b_enc_LS: Tensor
    threshold_LS: Tensor | None
    """JumpReLU's thresholds, raw, at least float32; BatchTopK's running ones, which no gradient moves; or None."""
    w_dec_PFC: Tensor
    b_dec_LC: Tensor
    w_skip_LCD: Tensor | None = None
    """The linear map from a layer's input to its output, or None."""

    @classmethod
    def zeros(
        cls,
        share: Share,
        *,
        thresholds: bool,
        dtype: torch.dtype,
        skip: bool = False,
        decoder: bool = True,
        weights: ParameterType = ParameterType.FLOAT32,
        device: torch.device | None = None,
    ) -> Parameters:
        """Allocate a rank's share, all zero; without `decoder`, its weights have no pairs; by default on the host."""
        shape = share.shape
        num_pairs = shape.num_pairs if decoder else 0
        num_layers, num_features, num_columns = shape.num_layers, share.num_features, share.num_columns
        # In 16 bits a threshold stalls: its steps are far smaller than itself.
        wide = torch.promote_types(dtype, torch.float32)
        kept = torch.bfloat16 if weights is ParameterType.BFLOAT16 else dtype

        def zeros(*dims: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.zeros(dims, dtype=dtype, device=device)

        return cls(
            share=share,
            w_enc_LSD=zeros(num_layers, num_features, shape.d_model, dtype=kept),
            b_enc_LS=zeros(num_layers, num_features),
            threshold_LS=zeros(num_layers, num_features, dtype=wide) if thresholds else None,
            w_dec_PFC=zeros(num_pairs, shape.num_features, num_columns, dtype=kept),
            b_dec_LC=zeros(num_layers, num_columns),
            w_skip_LCD=zeros(num_layers, num_columns, shape.d_model) if skip else None,
        )

    def zeros_like(self, *, decoder: bool = True, dtype: torch.dtype | None = None) -> Parameters:
        """
        Allocate tensors of the same shapes, all zero; without `decoder`, its weights have no pairs.

        Args:
            dtype: Of all but thresholds; by default what is computed in.
        """
        return Parameters.zeros(
            self.share,
            thresholds=self.threshold_LS is not None,
            dtype=dtype or self.dtype,
            skip=self.w_skip_LCD is not None,
            decoder=decoder,
            device=self.device,
        )

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in."""
        return self.b_enc_LS.dtype

    @property
    def device(self) -> torch.device:
        """Where all of them lie."""
        return self.w_enc_LSD.device

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor under the name that a checkpoint gives it, in a fixed order."""
        yield "w_enc", self.w_enc_LSD
        yield "b_enc", self.b_enc_LS
        if self.threshold_LS is not None:
            yield "threshold", self.threshold_LS
        yield "w_dec", self.w_dec_PFC
        yield "b_dec", self.b_dec_LC
        if self.w_skip_LCD is not None:
            yield "w_skip", self.w_skip_LCD

    def encoder(self, layer: int) -> Tensor:
        """Return the encoder [S, D] of a layer in the type that is computed in; a view where it is kept in it."""
        return self.w_enc_LSD[layer].to(self.dtype)

    def decoder(self, source: int, target: int) -> Tensor:
        """Return the block [F, C] of a pair of layers, a view, of the type that it is kept in."""
        shape = self.share.shape
        return self.w_dec_PFC[pair_index(shape.num_layers, source, target, shape.span)]
