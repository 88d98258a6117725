"""
One training step of one rank on a device, put together from the kernels: TopK, no norms in the loss, beta1 = 0.

What `weft_clt.step` does, without the exchange between ranks; parameters and second moments in one type.
Shapes: L layers, T tokens, F features of a layer, D d_model, P pairs of layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from weft_clt.kernels import AdamStep, DecoderPairs, FeatureLists, Kernels

Made = TypeVar("Made")


@dataclass(frozen=True)
class GpuShape:
    num_layers: int
    d_model: int
    num_features: int
    num_tokens: int
    top_k: int

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """(source, target) of every decoder block."""
        return [(s, t) for s in range(self.num_layers) for t in range(s, self.num_layers)]

    def num_bytes(self, itemsize: int) -> int:
        """Parameters, second moments, the encoder's gradient the activations, and 1 % for lists and partial sums."""
        row = self.num_features * self.d_model
        held = 2 * (self.num_layers + len(self.blocks)) * row + self.num_layers * row
        streams = 3 * self.num_layers * self.num_tokens * self.d_model
        return int(1.01 * (held + streams) * itemsize)


class GpuStep:
    """Random parameters and data of a shape; `run` does one step and hands every part of it to `timed`."""

    def __init__(self, shape: GpuShape, kernels: Kernels, dtype: torch.dtype, device: torch.device) -> None:
        self.shape, self.kernels, self.device = shape, kernels, device
        layers, tokens, features, d = shape.num_layers, shape.num_tokens, shape.num_features, shape.d_model

        def normal(scale: float, *dims: int) -> Tensor:
            return torch.empty(dims, dtype=dtype, device=device).normal_(0, scale)

        self.w_enc_LFD, self.b_enc_LF = normal(d**-0.5, layers, features, d), normal(0.1, layers, features)
        self.w_dec_PFD = torch.empty(len(shape.blocks), features, d, dtype=dtype, device=device)
        for block_FD in self.w_dec_PFD:
            block_FD.normal_(0, (layers * d) ** -0.5)
        self.b_dec_LD = torch.zeros(layers, d, dtype=dtype, device=device)
        self.second_enc_LFD, self.second_dec_PFD = torch.zeros_like(self.w_enc_LFD), torch.zeros_like(self.w_dec_PFD)
        self.grad_enc_LFD = torch.zeros_like(self.w_enc_LFD)
        self.inputs_LTD, self.targets_LTD = normal(1.0, layers, tokens, d), normal(1.0, layers, tokens, d)
        self.error_LTD = torch.empty_like(self.targets_LTD)
        self.coeff_LF = torch.zeros(layers, features, dtype=torch.float32, device=device)
        self.pairs = DecoderPairs.of(layers, shape.blocks)
        self.step = 0
        self.lists: FeatureLists | None = None

    def run(self, timed: Callable[[str, Callable[[], Made]], Made]) -> FeatureLists:
        """Do one step; returns the entries that it worked on."""
        shape, kernels, layers = self.shape, self.kernels, range(self.shape.num_layers)
        self.step += 1

        def encode() -> list[tuple[Tensor, Tensor, Tensor]]:
            return [
                kernels.encode(self.inputs_LTD[each], self.w_enc_LFD[each], self.b_enc_LF[each], None, shape.top_k)
                for each in layers
            ]

        own_L = timed("encode and select", encode)
        firsts = [0]
        for _, feature_M, _ in own_L:
            firsts.append(firsts[-1] + feature_M.shape[0])

        def join() -> FeatureLists:
            return FeatureLists.of(
                [
                    kernels.merge(
                        counts_T[None],
                        [feature_M.int()],
                        [value_M],
                        [first],
                        num_features=shape.num_features,
                        top_k=shape.top_k,
                    )
                    for (counts_T, feature_M, value_M), first in zip(own_L, firsts, strict=False)
                ]
            )

        lists = timed("lists", join)
        grad_slots = torch.zeros(firsts[-1], dtype=torch.float32, device=self.device)
        grad_b_dec_LD = torch.empty_like(self.b_dec_LD)
        decoder = (lists, self.pairs, self.w_dec_PFD)
        timed("decode", lambda: kernels.decode_pass(*decoder, self.b_dec_LD, self.targets_LTD, self.error_LTD))
        self.error_LTD.mul_(2.0 / shape.num_tokens)
        squares = timed(
            "value gradients", lambda: kernels.value_grad_pass(*decoder, self.error_LTD, grad_slots, grad_b_dec_LD)
        )

        def encoder_gradient() -> None:
            self.grad_enc_LFD.zero_()
            for layer, (counts_T, feature_M, _) in enumerate(own_L):
                grad_M = grad_slots[firsts[layer] : firsts[layer + 1]]
                inputs_TD, grad_FD = self.inputs_LTD[layer], self.grad_enc_LFD[layer]
                kernels.encode_backward(counts_T, feature_M, grad_M, inputs_TD, grad_FD)

        timed("encoder gradient", encoder_gradient)
        squares += timed("norm of the encoder's gradient", lambda: kernels.sum_squares(self.grad_enc_LFD))
        norm = squares**0.5
        adam = AdamStep(1e-4, 0.0, 0.999, 1e-8, self.step, min(1.0, 1.0 / norm) if norm else 1.0)
        timed(
            "decoder update",
            lambda: kernels.decoder_adam(*decoder, self.error_LTD, self.coeff_LF, None, self.second_dec_PFD, adam),
        )
        timed(
            "encoder update",
            lambda: kernels.adam(self.w_enc_LFD, self.grad_enc_LFD, None, self.second_enc_LFD, adam),
        )
        return lists
