"""
Adam on one rank's share, with the gradient clipped by its norm over the whole mesh.

The gradient is clipped by its norm of this very step, so that results are those of dense clipping and Adam. The
decoder's is never in memory where one data group trains (`gradients`); all others are. With beta1 = 0 the first moment
is the gradient itself and takes no memory. Weights and moments have the floating type that is computed in, or are
bfloat16, rounded at random (`kernels.dithering`); thresholds and their moments are at least float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from weft_clt.config import Moments, OptimizerConfig
from weft_clt.gradients import DecoderGradient
from weft_clt.kernels import AdamStep, Kernels
from weft_clt.mesh import Mesh
from weft_clt.parameters import Parameters

__all__ = ["EPSILON", "Adam"]

EPSILON = 1e-8


class Adam:
    """
    Optimiser of one rank.

    Args:
        params: Updated in place.
    """

    def __init__(self, params: Parameters, config: OptimizerConfig, mesh: Mesh, kernels: Kernels) -> None:
        self._params, self._config, self._mesh, self._kernels = params, config, mesh, kernels
        self._dtype = torch.bfloat16 if config.moments is Moments.BFLOAT16 else None

    @cached_property
    def first(self) -> Parameters | None:
        """First moments, allocated by the first step or a checkpoint: whoever only evaluates has none."""
        return self._params.zeros_like(dtype=self._dtype) if self._config.beta1 > 0 else None

    @cached_property
    def second(self) -> Parameters:
        """Second moments, likewise."""
        return self._params.zeros_like(dtype=self._dtype)

    def grad_norm(self, grads: Parameters, decoder: DecoderGradient | None) -> float:
        """
        Return the Euclidean norm of the whole gradient.

        Args:
            decoder: The gradient of the decoder's weights, where `grads` does not hold it.

        Collectives: one reduction on the feature axis; on the data axis the gradients are equal already.
        """
        squares = sum(self._kernels.sum_squares(grad) for _, grad in grads.named())
        squares += decoder.squares if decoder is not None else 0.0
        return math.sqrt(float(self._mesh.feature.sum_(torch.tensor([squares], dtype=torch.float64))))

    def update(self, grads: Parameters, decoder: DecoderGradient | None, *, step: int, learning_rate: float) -> float:
        """Clip, update the parameters, and return the norm before clipping."""
        norm = self.grad_norm(grads, decoder)
        clip = self._config.clip_norm
        adam = AdamStep(
            learning_rate=learning_rate,
            beta1=self._config.beta1,
            beta2=self._config.beta2,
            epsilon=EPSILON,
            step=step,
            grad_scale=clip / norm if 0 < clip < norm else 1.0,
        )
        firsts: Iterator[tuple[str, Tensor | None]]
        firsts = self.first.named() if self.first is not None else ((name, None) for name, _ in grads.named())
        for (name, param), (_, grad), (_, first), (_, second) in zip(
            self._params.named(), grads.named(), firsts, self.second.named(), strict=True
        ):
            if name == "w_dec" and decoder is not None:
                decoder.update(first, second, adam)
            else:
                self._kernels.adam(param, grad, first, second, adam)
        return norm

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the moments under the names that a checkpoint gives them."""
        if self.first is not None:
            for name, tensor in self.first.named():
                yield f"adam_first.{name}", tensor
        for name, tensor in self.second.named():
            yield f"adam_second.{name}", tensor
