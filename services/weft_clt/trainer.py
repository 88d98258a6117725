"""
One rank of a run: parameters, optimiser and clocks, from step to step.

A step takes its tokens in one pass or, to need less memory for them, in several, whose gradients are added up.

Shapes: O tokens of this rank, T tokens of its group, L layers, D d_model, C columns of this rank.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from weft_clt.config import TrainingConfig
from weft_clt.evaluating import evaluate
from weft_clt.initial import calibrate_biases, initial_parameters
from weft_clt.kernels import Kernels
from weft_clt.mesh import Mesh
from weft_clt.metrics import DeadClock, Evaluation, ReconstructionSums, StepMetrics
from weft_clt.normalization import Normalization
from weft_clt.optimizer import Adam
from weft_clt.parameters import Shape, Share
from weft_clt.schedule import learning_rate, sparsity_coeff
from weft_clt.step import Forward, Losses, StepEngine
from weft_common.errors import FailedPreconditionError

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


@dataclass
class _Passes:
    """What the passes of a step came to so far."""

    sums: ReconstructionSums
    done: int = 0
    losses: Losses = field(default_factory=lambda: Losses(0.0, 0.0, 0.0))
    sent_bytes: int = 0
    entry_bytes: int = 0
    data_wait_s: float = 0.0
    wall_s: float = 0.0
    """Waiting included."""


class Trainer:
    """
    Trains one rank's share.

    Args:
        num_layers: L of the dataset.
        d_model: D of the dataset.
        dtype: Floating type that is computed in; of parameters and moments where the config does not say otherwise.
        device: Where everything lies that a step reads and writes, batches included; by default the host.
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
        device: torch.device | None = None,
    ) -> None:
        config.check_shape(num_layers, d_model)
        self.config, self.mesh, self.dtype = config, mesh, dtype
        shape = Shape(num_layers, config.features.num_features, d_model, config.features.decoder_span)
        self.share = Share(shape, mesh.feature.rank, mesh.feature.size)
        self.params = initial_parameters(
            self.share,
            config.features,
            normalization,
            seed=config.batch.seed,
            dtype=dtype,
            weights=config.optimizer.parameters,
            device=device,
        )
        self.adam = Adam(self.params, config.optimizer, mesh, kernels)
        self.clock = DeadClock(self.share, config.batch.dead_after_tokens, device)
        self.step = 0
        passes = config.batch.passes
        self.group_tokens = config.batch.step_tokens // (mesh.data.size * passes)
        self.engine = StepEngine(
            self.params, mesh, kernels, config.features, config.loss, group_tokens=self.group_tokens, passes=passes
        )
        self._begun: _Passes | None = None
        """The step that is under way."""
        self._centre_LC = torch.from_numpy(normalization.output_mean_LD[:, self.share.columns]).to(self.params.device)

    @property
    def rank_tokens(self) -> int:
        """O: tokens that this rank brings to a pass."""
        return self.config.batch.step_tokens // (self.mesh.world_size * self.config.batch.passes)

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.config.batch.num_steps

    def add_pass(self, batch: Batch, data_wait_s: float = 0.0) -> None:
        """
        Add the gradients of a batch to the next step's; every pass of a step but the last, which is `train_step`.

        Args:
            data_wait_s: How long the batch was waited for, for the metrics.

        Raises:
            FailedPreconditionError: No other pass is left.
        """
        self._pass(batch, data_wait_s, last=False)

    def train_step(self, batch: Batch, data_wait_s: float = 0.0) -> StepMetrics:
        """
        Do the next step, or end it where it has several passes.

        Args:
            data_wait_s: How long the batch was waited for, for the metrics.

        Raises:
            FailedPreconditionError: Another pass is missing.
        """
        config, step = self.config, self.step + 1
        step_tokens, num_steps = config.batch.step_tokens, config.batch.num_steps
        passes, forward = self._pass(batch, data_wait_s, last=True)
        start_s, sent_bytes = time.perf_counter(), self.mesh.sent_bytes
        rate = learning_rate(config.optimizer, step, num_steps)
        norm = self.adam.update(self.engine.grads, self.engine.decoder_grads, step=step, learning_rate=rate)
        self._move_thresholds(forward, step)
        self.step, self._begun = step, None

        reduced, losses = passes.sums.reduced(self.mesh), passes.losses
        parts = torch.tensor([losses.sparsity, losses.preact, losses.aux], dtype=torch.float64)
        sparsity, preact, aux = self.mesh.data.sum_(self.mesh.feature.sum_(parts)).tolist()
        reconstruction = reduced.reconstruction_loss()
        sent_bytes = self.mesh.sent_bytes - sent_bytes + passes.sent_bytes
        wall_s = time.perf_counter() - start_s + passes.wall_s
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
            data_wait_share=passes.data_wait_s / wall_s,
            sent_bytes_per_token=sent_bytes / step_tokens,
            entry_bytes_per_token=passes.entry_bytes / step_tokens,
        )

    def _pass(self, batch: Batch, data_wait_s: float, *, last: bool) -> tuple[_Passes, Forward]:
        start_s, sent_bytes, entry_bytes = time.perf_counter(), self.mesh.sent_bytes, self.engine.entry_bytes
        config, step = self.config, self.step + 1
        begun = self._begun or _Passes(ReconstructionSums(self.share, self._centre_LC))
        if last != (begun.done + 1 == config.batch.passes):
            raise FailedPreconditionError(
                f"Step {step} has had {begun.done} of {config.batch.passes} passes; the last is for train_step, "
                "the others are for add_pass."
            )
        gathering = self.engine.start_gather(batch.inputs_LOD, batch.targets_LOD)
        if step == 1 and not begun.done and not config.features.activation.counts:
            gathering.wait()
            calibrate_biases(self.params, gathering.inputs_LTD, self.mesh)
        forward = self.engine.forward(
            gathering.inputs_LTD, gathering.targets_LTC, dead_LF=self._dead(), gathering=gathering
        )
        begun.sums.add(forward.error_LTC, forward.targets_LTC, forward.exchanged)
        own = self.engine.backward(
            forward,
            step_tokens=config.batch.step_tokens,
            sparsity_coeff=sparsity_coeff(config.loss, step, config.batch.num_steps),
            first=not begun.done,
            last=last,
        )
        begun.losses = begun.losses.plus(own)
        begun.done += 1
        begun.sent_bytes += self.mesh.sent_bytes - sent_bytes
        begun.entry_bytes += self.engine.entry_bytes - entry_bytes
        begun.data_wait_s += data_wait_s
        begun.wall_s += time.perf_counter() - start_s + data_wait_s
        self._begun = begun
        return begun, forward

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
        Measure the present parameters on held-out data, as `weft_clt.evaluating.evaluate` does.

        Collectives: those of `evaluate`.
        """
        return evaluate(self.engine, self._centre_LC, batches, num_batches, step=self.step)

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield everything that a step changes, by the name that a checkpoint gives it."""
        yield from self.params.named()
        yield from self.adam.named()
        yield "silent_tokens", self.clock.silent_tokens_LF
