"""
One rank of a run: parameters, optimiser and clocks, from step to step.

Shapes: O tokens of this rank, T tokens of its group, L layers, D d_model, C columns of this rank.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from weft_clt.config import TrainingConfig
from weft_clt.initial import calibrate_biases, initial_parameters
from weft_clt.kernels import Kernels
from weft_clt.mesh import Mesh
from weft_clt.metrics import DeadClock, Evaluation, ReconstructionSums, StepMetrics
from weft_clt.normalization import Normalization
from weft_clt.optimizer import Adam
from weft_clt.parameters import Shape, Share
from weft_clt.schedule import learning_rate, sparsity_coeff
from weft_clt.step import Forward, StepEngine

__all__ = ["Batch", "Trainer"]

RUNNING_SHARE = 0.01
"""Weight of a step in BatchTopK's running threshold, once 100 steps have shared it evenly."""


@dataclass(frozen=True)
class Batch:
    """Normalised activations of this rank's tokens."""

    inputs_LOD: Tensor
    targets_LOD: Tensor
    num_valid: int
    """Rows from this one on only fill the batch up; training batches are full."""


class Trainer:
    """
    Trains one rank's share.

    Args:
        num_layers: L of the dataset.
        d_model: D of the dataset.
        dtype: Floating type of parameters, moments and activations.
    """

    def __init__(
        self,
        config: TrainingConfig,
        normalization: Normalization,
        mesh: Mesh,
        kernels: Kernels,
        *,
        num_layers: int,
        d_model: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        config.check_shape(num_layers, d_model)
        self.config, self.mesh, self.dtype = config, mesh, dtype
        shape = Shape(num_layers, config.features.num_features, d_model, config.features.decoder_span)
        self.share = Share(shape, mesh.feature.rank, mesh.feature.size)
        self.params = initial_parameters(
            self.share, config.features, normalization, seed=config.batch.seed, dtype=dtype
        )
        self.adam = Adam(self.params, config.optimizer, mesh, kernels)
        self.clock = DeadClock(self.share, config.batch.dead_after_tokens)
        self.step = 0
        self.group_tokens = config.batch.step_tokens // mesh.data.size
        self.engine = StepEngine(
            self.params, mesh, kernels, config.features, config.loss, group_tokens=self.group_tokens
        )
        self._centre_LC = torch.from_numpy(normalization.output_mean_LD[:, self.share.columns])

    @property
    def rank_tokens(self) -> int:
        """O: tokens that this rank brings to a step."""
        return self.config.batch.step_tokens // self.mesh.world_size

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.config.batch.num_steps

    def train_step(self, batch: Batch, data_wait_s: float = 0.0) -> StepMetrics:
        """
        Do the next step.

        Args:
            data_wait_s: How long the batch was waited for, for the metrics.
        """
        start_s, sent_bytes, entry_bytes = time.perf_counter(), self.mesh.sent_bytes, self.engine.entry_bytes
        config, step = self.config, self.step + 1
        step_tokens, num_steps = config.batch.step_tokens, config.batch.num_steps
        gathering = self.engine.start_gather(batch.inputs_LOD, batch.targets_LOD)
        if step == 1 and not config.features.activation.counts:
            gathering.wait()
            calibrate_biases(self.params, gathering.inputs_LTD, self.mesh)
        forward = self.engine.forward(
            gathering.inputs_LTD, gathering.targets_LTC, dead_LF=self._dead(), gathering=gathering
        )
        sums = ReconstructionSums(self.share, self._centre_LC)
        sums.add(forward.error_LTC, forward.targets_LTC, forward.exchanged)
        losses = self.engine.backward(
            forward, step_tokens=step_tokens, sparsity_coeff=sparsity_coeff(config.loss, step, num_steps)
        )
        rate = learning_rate(config.optimizer, step, num_steps)
        norm = self.adam.update(self.engine.grads, self.engine.decoder_grads, step=step, learning_rate=rate)
        self._move_thresholds(forward, step)
        self.step = step

        reduced = sums.reduced(self.mesh)
        parts = torch.tensor([losses.sparsity, losses.preact, losses.aux], dtype=torch.float64)
        sparsity, preact, aux = self.mesh.data.sum_(self.mesh.feature.sum_(parts)).tolist()
        reconstruction = reduced.reconstruction_loss()
        wall_s = time.perf_counter() - start_s + data_wait_s
        return StepMetrics(
            step=step,
            tokens=step * step_tokens,
            loss=reconstruction + sparsity + preact + aux,
            reconstruction_loss=reconstruction,
            sparsity_loss=sparsity,
            preact_loss=preact,
            aux_loss=aux,
            l0=float(reduced.active_L.mean()) / reduced.tokens,
            explained_variance=float(reduced.explained_variance_by_layer().mean()),
            dead_share=self.clock.advance(reduced.fired_LF, step_tokens),
            gradient_norm=norm,
            learning_rate=rate,
            tokens_per_s=step_tokens / wall_s,
            data_wait_share=data_wait_s / wall_s,
            sent_bytes_per_token=(self.mesh.sent_bytes - sent_bytes) / step_tokens,
            entry_bytes_per_token=(self.engine.entry_bytes - entry_bytes) / step_tokens,
        )

    def _dead(self) -> Tensor | None:
        """Which features AuxK is to revive; None where there are none, on all ranks alike."""
        if not self.config.loss.aux_top_k:
            return None
        dead_LF = self.clock.silent_tokens_LF >= self.config.batch.dead_after_tokens
        return dead_LF if dead_LF.any() else None

    def _move_thresholds(self, forward: Forward, step: int) -> None:
        """Keep JumpReLU's thresholds from falling below 0; let BatchTopK's follow what it kept."""
        threshold_LS = self.params.threshold_LS
        if threshold_LS is None:
            return
        if forward.bound_L is not None:
            threshold_LS.lerp_(forward.bound_L[:, None].to(threshold_LS.dtype), max(1 / step, RUNNING_SHARE))
        threshold_LS.clamp_(min=0)

    def evaluate(self, batches: Iterator[Batch], num_batches: int) -> Evaluation:
        """
        Measure on held-out data; every rank gives the same number of batches, filled up where its data ends.

        Collectives: those of a forward pass a batch, and of `ReconstructionSums.reduced`.
        """
        sums = ReconstructionSums(self.share, self._centre_LC)
        for _ in range(num_batches):
            batch = next(batches)
            rank_tokens = batch.inputs_LOD.shape[1]
            inputs_LTD, targets_LTC = self.engine.gather(batch.inputs_LOD, batch.targets_LOD)
            valid_T = self.mesh.feature.gather((torch.arange(rank_tokens) < batch.num_valid).to(torch.uint8))
            forward = self.engine.forward(inputs_LTD, targets_LTC, near=False)
            sums.add(forward.error_LTC, targets_LTC, forward.exchanged, valid_T.flatten().bool())
        return sums.reduced(self.mesh).evaluation(self.step)

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield everything that a step changes, by the name that a checkpoint gives it."""
        yield from self.params.named()
        yield from self.adam.named()
        yield "silent_tokens", self.clock.silent_tokens_LF
