"""Small transcoders, and an independent dense oracle: stock torch, float64, autograd, one weight per pair of layers."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weft_clt.config import TrainingConfig
from weft_clt.kernels import Kernels
from weft_clt.mesh import Mesh, SingleAxis
from weft_clt.normalization import Normalization
from weft_clt.parameters import Parameters
from weft_clt.trainer import Batch, Trainer

NUM_LAYERS, NUM_FEATURES, D_MODEL, NUM_TOKENS = 3, 12, 8, 8


def config_of(**changes: Any) -> TrainingConfig:
    """A configuration of a few steps; changes are fields of TrainingSpec."""
    spec: dict[str, Any] = {
        "dataset": "datasets/small",
        "num_features": NUM_FEATURES,
        "activation": "ACTIVATION_TOP_K",
        "top_k": 3,
        "num_steps": 5,
        "step_tokens": NUM_TOKENS,
        "feature_ranks": 1,
        "data_ranks": 1,
        "learning_rate": 1e-2,
        "warmup_steps": 2,
        "decay_share": 0.4,
        "adam_beta1": 0.9,
        "adam_beta2": 0.99,
        "clip_norm": 0.5,
        "dead_after_tokens": 16,
        "seed": 11,
    }
    return TrainingConfig.from_spec(spec | changes)


JUMP_RELU: dict[str, Any] = {
    "activation": "ACTIVATION_JUMP_RELU",
    "top_k": 0,
    "threshold_init": 0.1,
    "bandwidth": 0.7,
    "sparsity_coeff": 0.3,
    "sparsity_scale": 2.0,
    "sparsity_ramp_share": 0.5,
    "preact_coeff": 0.02,
}


def normalization() -> Normalization:
    random = np.random.default_rng(5)
    means = random.standard_normal((2, NUM_LAYERS, D_MODEL)) * 0.2
    return Normalization(np.ones(NUM_LAYERS), np.ones(NUM_LAYERS), means[0], means[1])


def tokens(step: int, num_tokens: int = NUM_TOKENS) -> tuple[Tensor, Tensor]:
    """The inputs and targets of a step over all ranks, float64, [L, T, D]."""
    random = np.random.default_rng([23, step])
    shape = (2, NUM_LAYERS, num_tokens, D_MODEL)
    inputs, targets = torch.from_numpy(random.standard_normal(shape))
    return inputs, targets


def own_batch(step: int, mesh: Mesh, num_tokens: int = NUM_TOKENS) -> Batch:
    """The part of a step's tokens that a rank brings."""
    inputs, targets = tokens(step, num_tokens)
    own = num_tokens // mesh.world_size
    rows = slice(mesh.rank * own, (mesh.rank + 1) * own)
    return Batch(inputs[:, rows].contiguous(), targets[:, rows].contiguous(), own)


def trainer_of(config: TrainingConfig, kernels: Kernels, mesh: Mesh | None = None) -> Trainer:
    """A trainer in float64, whose decoder is not 0 so that every gradient is there from the first step on."""
    mesh = mesh or Mesh(SingleAxis(), SingleAxis())
    trainer = Trainer(
        config, normalization(), mesh, kernels, num_layers=NUM_LAYERS, d_model=D_MODEL, dtype=torch.float64
    )
    random = np.random.default_rng(41)
    share = trainer.share
    for source in range(NUM_LAYERS):
        for target in range(source, NUM_LAYERS):
            block = random.standard_normal((NUM_FEATURES, D_MODEL)) * 0.3
            trainer.params.decoder(source, target).copy_(torch.from_numpy(block[:, share.columns]))
    return trainer


class _Step(torch.autograd.Function):
    """h * 1[h > theta] with a rectangle for the derivative of the step, written down from the published formulas."""

    @staticmethod
    def forward(ctx: Any, preact: Tensor, threshold: Tensor, bandwidth: float, through: bool) -> Tensor:
        ctx.save_for_backward(preact, threshold)
        ctx.bandwidth, ctx.through = bandwidth, through
        return torch.where(preact > threshold, preact, torch.zeros_like(preact))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        preact, threshold = ctx.saved_tensors
        kernel = (((preact - threshold) / ctx.bandwidth).abs() < 0.5).double() * threshold / ctx.bandwidth
        grad_preact = (preact > threshold) * grad + (kernel * grad if ctx.through else 0)
        return grad_preact, -(kernel * grad).sum(0), None, None


@dataclass
class Oracle:
    """The dense model; its leaves carry gradients after `loss(...).backward()`."""

    w_enc: Tensor
    b_enc: Tensor
    threshold: Tensor | None
    w_dec: list[list[Tensor]]
    b_dec: Tensor

    @classmethod
    def of(cls, params: Parameters) -> "Oracle":
        def leaf(tensor: Tensor) -> Tensor:
            return tensor.clone().requires_grad_()

        blocks = [[leaf(params.decoder(s, t)) for t in range(s, NUM_LAYERS)] for s in range(NUM_LAYERS)]
        threshold = None if params.threshold_LS is None else leaf(params.threshold_LS)
        return cls(leaf(params.w_enc_LSD), leaf(params.b_enc_LS), threshold, blocks, leaf(params.b_dec_LC))

    def acts(self, inputs: Tensor, config: TrainingConfig) -> tuple[list[Tensor], list[Tensor]]:
        preacts = [x @ w.T + b for x, w, b in zip(inputs, self.w_enc, self.b_enc, strict=True)]
        if self.threshold is None:
            acts = []
            for preact in preacts:
                kept = torch.zeros_like(preact)
                for row, values in enumerate(preact.detach().tolist()):
                    best = sorted(range(len(values)), key=lambda f: -values[f])[: config.features.top_k]
                    kept[row, best] = 1
                acts.append(torch.relu(preact) * kept)
            return preacts, acts
        through = config.features.gradient_through_threshold
        return preacts, [
            _Step.apply(preact, theta, config.features.bandwidth, through)
            for preact, theta in zip(preacts, self.threshold, strict=True)
        ]

    def losses(
        self, inputs: Tensor, targets: Tensor, config: TrainingConfig, coeff: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction, sparsity and pre-activation loss, means over tokens."""
        preacts, acts = self.acts(inputs, config)
        reconstruction = torch.zeros((), dtype=torch.float64)
        for target in range(NUM_LAYERS):
            predicted = self.b_dec[target] + sum(acts[s] @ self.w_dec[s][target - s] for s in range(target + 1))
            reconstruction = reconstruction + (predicted - targets[target]).square().sum()
        sparsity, preact_loss = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        if self.threshold is not None:
            for layer in range(NUM_LAYERS):
                norm = torch.cat(self.w_dec[layer], dim=1).norm(dim=1)
                sparsity = sparsity + coeff * torch.tanh(config.loss.sparsity_scale * norm * acts[layer]).sum()
                gap = torch.relu(self.threshold[layer] - preacts[layer])
                preact_loss = preact_loss + config.loss.preact_coeff * (gap * norm).sum()
        num_tokens = inputs.shape[1]
        return reconstruction / num_tokens, sparsity / num_tokens, preact_loss / num_tokens

    def leaves(self) -> list[Tensor]:
        """In the order of `Parameters.named`."""
        thresholds = [] if self.threshold is None else [self.threshold]
        return [self.w_enc, self.b_enc, *thresholds, *(block for row in self.w_dec for block in row), self.b_dec]

    def grads(self) -> dict[str, Tensor]:
        """By the names of `Parameters.named`."""
        grads = {
            "w_enc": self.w_enc.grad,
            "b_enc": self.b_enc.grad,
            "w_dec": torch.stack([block.grad for row in self.w_dec for block in row if block.grad is not None]),
            "b_dec": self.b_dec.grad,
        }
        if self.threshold is not None:
            grads["threshold"] = self.threshold.grad
        return {name: grad for name, grad in grads.items() if grad is not None}


def without_clipping(config: TrainingConfig) -> TrainingConfig:
    return replace(config, optimizer=replace(config.optimizer, clip_norm=0.0))
