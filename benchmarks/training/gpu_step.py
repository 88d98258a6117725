"""
One rank's training step on a device, as a worker does it (`weft_clt.trainer`): TopK, no norms in the loss, beta1 = 0.

Parameters and second moments are in one type. Every call of a kernel goes through `PartKernels`, which can time it.
Shapes: L layers, T tokens, F features of a layer, D d_model, P pairs of layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weft_clt.config import TrainingConfig
from weft_clt.data import CodedRowGroup, CodedStream, RowGroup
from weft_clt.kernels import FeatureLists, Kernels
from weft_clt.loader import LoaderOptions, TokenLoader
from weft_clt.mesh import Mesh, SingleAxis
from weft_clt.metrics import StepMetrics
from weft_clt.normalization import Normalization
from weft_clt.staging import staging_for
from weft_clt.trainer import Batch, Trainer

_PARTS = {
    "encode": "encode and select",
    "merge": "lists",
    "decode_pass": "decode",
    "value_grad_pass": "value gradients",
    "encode_backward": "encoder gradient",
    "sum_squares": "norm of the encoder's gradient",
    "decoder_adam": "decoder update",
    "adam": "encoder update",
}
"""Calls of a kernel, and what a step spends their time on."""
_ROW_GROUPS = 8


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
        """Parameters, second moments, the encoder's gradient, the activations, and 1 % for lists and partial sums."""
        row = self.num_features * self.d_model
        held = 2 * (self.num_layers + len(self.blocks)) * row + self.num_layers * row
        streams = 3 * self.num_layers * self.num_tokens * self.d_model
        return int(1.01 * (held + streams) * itemsize)

    def config(self) -> TrainingConfig:
        """What a run of this shape is told."""
        return TrainingConfig.from_spec(
            {
                "dataset": "datasets/bench", "num_features": self.num_features, "activation": "ACTIVATION_TOP_K",
                "top_k": self.top_k, "num_steps": 1_000_000, "step_tokens": self.num_tokens, "feature_ranks": 1,
                "data_ranks": 1, "learning_rate": 1e-4, "adam_beta1": 0.0, "adam_beta2": 0.999, "clip_norm": 1.0,
                "dead_after_tokens": 10_000_000, "seed": 1,
            }
        )  # fmt: skip


class PartKernels:
    """
    The kernels of a device; each call is handed to `timed` with the name of its part, where that is set.

    Args:
        own: Whose calls these are.
    """

    def __init__(self, own: Kernels) -> None:
        self.own = own
        self.timed: Callable[[str, Callable[[], Any]], Any] | None = None
        self.lists: FeatureLists | None = None
        """The entries that the decoder worked on last."""

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.own, name)

        def run(*args: Any, **kwargs: Any) -> Any:
            if name == "decode_pass":
                self.lists = args[0]
            if self.timed is None or name not in _PARTS:
                return call(*args, **kwargs)
            return self.timed(_PARTS[name], lambda: call(*args, **kwargs))

        return run


class RandomRowGroups:
    """A dataset of noise in bfloat16, in this process's memory."""

    def __init__(self, shape: GpuShape) -> None:
        self._rows = max(1, shape.num_tokens // 4)
        noise = torch.randn(shape.num_layers, self._rows, shape.d_model, generator=torch.Generator().manual_seed(5))
        codes: np.ndarray[Any, np.dtype[np.uint16]] = noise.bfloat16().view(torch.uint16).numpy()
        self._coded = CodedRowGroup(CodedStream(codes), CodedStream(codes))

    def at(self, epoch: int, position: int) -> RowGroup | None:
        return RowGroup(epoch, position, self._rows, position, None) if position < _ROW_GROUPS else None

    def read(self, row_group: RowGroup) -> CodedRowGroup:
        return self._coded

    def describe(self, row_group: RowGroup) -> str:
        return f"row group {row_group.position} of noise"


class GpuStep:
    """A trainer of a shape with random parameters and data."""

    def __init__(self, shape: GpuShape, kernels: Kernels, dtype: torch.dtype, device: torch.device) -> None:
        self.shape, self.kernels, self.dtype, self.device = shape, PartKernels(kernels), dtype, device
        layers, d_model = shape.num_layers, shape.d_model
        means = np.zeros((layers, d_model))
        self._units = Normalization(np.ones(layers), np.ones(layers), means, means)
        accepted: Any = self.kernels
        self.trainer = Trainer(
            shape.config(), self._units, Mesh(SingleAxis(), SingleAxis()), accepted, num_layers=layers,
            d_model=d_model, dtype=dtype, device=device,
        )  # fmt: skip
        for block_FD in self.trainer.params.w_dec_PFC:
            block_FD.normal_(0, (layers * d_model) ** -0.5)

        def normal() -> Tensor:
            return torch.empty(layers, shape.num_tokens, d_model, dtype=dtype, device=device).normal_()

        self.batch = Batch(normal(), normal(), shape.num_tokens)

    def run(self) -> StepMetrics:
        """Do one step on data that is there."""
        return self.trainer.train_step(self.batch)

    def fed(self, num_steps: int) -> list[StepMetrics]:
        """Do steps on data that comes as a rank's does: codes of the host, drawn, moved and made into a batch."""
        loader = TokenLoader(
            RandomRowGroups(self.shape), self._units, step_tokens=self.shape.num_tokens, rank=0, world_size=1,
            options=LoaderOptions(num_streams=4), staging=staging_for(self.device),
        )  # fmt: skip
        try:
            return [self._fed_step(loader) for _ in range(num_steps)]
        finally:
            loader.close()

    def _fed_step(self, loader: TokenLoader) -> StepMetrics:
        drawn = loader.draw()
        batch = Batch(drawn.inputs_LOD.to(self.dtype), drawn.targets_LOD.to(self.dtype), drawn.num_valid)
        return self.trainer.train_step(batch)
