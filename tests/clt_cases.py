"""Small transcoders, and an independent dense oracle: stock torch, float64, autograd, one weight per pair of layers."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weft_clt.config import Activation, TrainingConfig
from weft_clt.kernels import Kernels
from weft_clt.mesh import Mesh, SingleAxis
from weft_clt.normalization import Normalization
from weft_clt.parameters import Parameters
from weft_clt.recipes import RECIPES as PUBLISHED
from weft_clt.recipes import RunSize
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

RELU: dict[str, Any] = {
    "activation": "ACTIVATION_RELU",
    "top_k": 0,
    "sparsity_coeff": 0.3,
    "sparsity_scale": 2.0,
    "preact_coeff": 0.02,
    "sparsity_schedule": [
        {"until": 0.5, "shape": "SCHEDULE_SHAPE_LINEAR", "factor": 0.5},
        {"until": 1.0, "shape": "SCHEDULE_SHAPE_COSINE", "factor": 1.0},
    ],
}

AUX: dict[str, Any] = {"aux_top_k": 2, "aux_coeff": 0.25, "dead_after_tokens": NUM_TOKENS}

RECIPES: dict[str, dict[str, Any]] = {
    "top_k": {},
    "top_k_aux": AUX,
    "top_k_skip": {"linear_skip": True},
    "top_k_window": {"decoder_span": 2},
    "top_k_per_layer": {"decoder_span": 1, "linear_skip": True} | AUX,
    "batch_top_k": {"activation": "ACTIVATION_BATCH_TOP_K"},
    "batch_top_k_aux": {"activation": "ACTIVATION_BATCH_TOP_K", "top_k": 1} | AUX,
    "joint_top_k": {"activation": "ACTIVATION_JOINT_TOP_K"},
    "joint_top_k_window_aux": {"activation": "ACTIVATION_JOINT_TOP_K", "decoder_span": 2, "top_k": 1} | AUX,
    "relu": RELU,
    "relu_aux": RELU | AUX,
    "jump_relu": JUMP_RELU,
    "jump_relu_through_threshold": JUMP_RELU | {"gradient_through_threshold": True},
    "jump_relu_window_skip_aux": JUMP_RELU | {"decoder_span": 2, "linear_skip": True} | AUX,
}
"""Every way of selecting features, alone and with what goes beside it."""

NAMED: dict[str, dict[str, Any]] = {
    name: recipe.make(
        RunSize("datasets/small", num_features=NUM_FEATURES, top_k=3, num_steps=5, step_tokens=NUM_TOKENS)
    ).to_spec()
    for name, recipe in PUBLISHED.items()
}
"""The published recipes, at this size."""


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


def some_dead(config: TrainingConfig) -> Tensor | None:
    """Features to revive: none of the first layer, one of the second, many of the third."""
    if not config.loss.aux_top_k:
        return None
    dead = torch.zeros(NUM_LAYERS, NUM_FEATURES, dtype=torch.bool)
    dead[1, 4] = True
    dead[2, 1:11] = True
    return dead


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
        for target in share.shape.targets(source):
            block = random.standard_normal((NUM_FEATURES, D_MODEL)) * 0.3
            trainer.params.decoder(source, target).copy_(torch.from_numpy(block[:, share.columns]))
    if trainer.params.w_skip_LCD is not None:
        skip = random.standard_normal((NUM_LAYERS, D_MODEL, D_MODEL)) * 0.1
        trainer.params.w_skip_LCD.copy_(torch.from_numpy(skip[:, share.columns]))
    return trainer


def gradients(trainer: Trainer) -> dict[str, Tensor]:
    """Every gradient by its parameter's name; the decoder's, which one data group never has in memory, written out."""
    grads = dict(trainer.engine.grads.named())
    assert trainer.engine.decoder_grads is not None
    grads["w_dec"] = torch.zeros_like(trainer.params.w_dec_PFC)
    trainer.engine.decoder_grads.add_to(grads["w_dec"])
    return grads


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
    """The dense model; its leaves carry gradients after `losses(...)` were summed and walked back."""

    w_enc: Tensor
    b_enc: Tensor
    threshold: Tensor | None
    w_dec: list[list[Tensor]]
    b_dec: Tensor
    skip: Tensor | None

    @classmethod
    def of(cls, params: Parameters) -> "Oracle":
        def leaf(tensor: Tensor) -> Tensor:
            return tensor.clone().requires_grad_()

        shape = params.share.shape
        blocks = [[leaf(params.decoder(s, t)) for t in shape.targets(s)] for s in range(NUM_LAYERS)]
        threshold = None if params.threshold_LS is None else leaf(params.threshold_LS)
        skip = None if params.w_skip_LCD is None else leaf(params.w_skip_LCD)
        return cls(leaf(params.w_enc_LSD), leaf(params.b_enc_LS), threshold, blocks, leaf(params.b_dec_LC), skip)

    def norms(self, layer: int) -> Tensor:
        return torch.cat(self.w_dec[layer], dim=1).norm(dim=1)

    def preacts(self, inputs: Tensor) -> list[Tensor]:
        return [x @ w.T + b for x, w, b in zip(inputs, self.w_enc, self.b_enc, strict=True)]

    def kept(self, preacts: list[Tensor], config: TrainingConfig) -> list[Tensor]:
        """Which entries a counting activation keeps: by sorting everything that competes."""
        top_k = config.features.top_k
        scores = [preact.detach().clone() for preact in preacts]
        if config.features.activation is Activation.JOINT_TOP_K:
            scores = [score * self.norms(layer).detach() for layer, score in enumerate(scores)]
        match config.features.activation:
            case Activation.TOP_K:
                pools = [[(layer, token)] for layer in range(NUM_LAYERS) for token in range(scores[0].shape[0])]
                most = top_k
            case Activation.BATCH_TOP_K:
                pools = [[(layer, token) for token in range(scores[0].shape[0])] for layer in range(NUM_LAYERS)]
                most = top_k * scores[0].shape[0]
            case _:
                pools = [[(layer, token) for layer in range(NUM_LAYERS)] for token in range(scores[0].shape[0])]
                most = top_k * NUM_LAYERS
        kept = [torch.zeros_like(preact, dtype=torch.bool) for preact in preacts]
        for pool in pools:
            entries = [(float(v), layer, token, f) for layer, token in pool for f, v in enumerate(scores[layer][token])]
            for score, layer, token, feature in sorted(entries, reverse=True)[:most]:
                kept[layer][token, feature] = score > 0
        return kept

    def acts(self, inputs: Tensor, config: TrainingConfig) -> tuple[list[Tensor], list[Tensor]]:
        preacts = self.preacts(inputs)
        if config.features.activation is Activation.RELU:
            return preacts, [torch.relu(preact) for preact in preacts]
        if config.features.activation is not Activation.JUMP_RELU or self.threshold is None:
            return preacts, [h * kept for h, kept in zip(preacts, self.kept(preacts, config), strict=True)]
        through = config.features.gradient_through_threshold
        return preacts, [
            _Step.apply(preact, theta, config.features.bandwidth, through)
            for preact, theta in zip(preacts, self.threshold, strict=True)
        ]

    def decoded(self, acts: list[Tensor], target: int) -> Tensor:
        """What the features of all layers write to one."""
        parts = [
            acts[source] @ self.w_dec[source][target - source]
            for source in range(target + 1)
            if target - source < len(self.w_dec[source])
        ]
        return torch.stack(parts).sum(0)

    def errors(self, inputs: Tensor, targets: Tensor, config: TrainingConfig) -> list[Tensor]:
        """Target minus prediction, layer by layer."""
        _, acts = self.acts(inputs, config)
        errors = []
        for target in range(NUM_LAYERS):
            predicted = self.b_dec[target] + self.decoded(acts, target)
            if self.skip is not None:
                predicted = predicted + inputs[target] @ self.skip[target].T
            errors.append(targets[target] - predicted)
        return errors

    def losses(
        self,
        inputs: Tensor,
        targets: Tensor,
        config: TrainingConfig,
        coeff: float,
        dead: Tensor | None = None,
        fixed: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """
        Reconstruction, sparsity, pre-activation and AuxK loss, means over tokens.

        Args:
            fixed: The error that AuxK predicts, where it is not to follow the parameters.
        """
        preacts, acts = self.acts(inputs, config)
        zero = torch.zeros((), dtype=torch.float64)
        reconstruction, sparsity, preact_loss, aux = zero, zero, zero, zero
        revived = []
        if dead is not None:
            for preact, dead_S in zip(preacts, dead, strict=True):
                offered = torch.where(dead_S, torch.relu(preact), 0.0)
                best = offered.topk(min(config.loss.aux_top_k, offered.shape[1]), dim=1)
                revived.append(torch.zeros_like(offered).scatter(1, best.indices, best.values))
        for target, error in enumerate(self.errors(inputs, targets, config)):
            reconstruction = reconstruction + error.square().sum()
            if dead is not None:
                left = (fixed[target] if fixed else error.detach()) - self.decoded(revived, target)
                aux = aux + config.loss.aux_coeff * left.square().sum()
        if not config.features.activation.counts:
            for layer in range(NUM_LAYERS):
                norm = self.norms(layer)
                sparsity = sparsity + coeff * torch.tanh(config.loss.sparsity_scale * norm * acts[layer]).sum()
                theta = self.threshold[layer] if self.threshold is not None else 0.0
                gap = torch.relu(theta - preacts[layer])
                preact_loss = preact_loss + config.loss.preact_coeff * (gap * norm).sum()
        parts = torch.stack([reconstruction, sparsity, preact_loss, aux]) / inputs.shape[1]
        return parts[0], parts[1], parts[2], parts[3]

    def leaves_of(self, name: str) -> list[Tensor]:
        """The tensors that a name of `Parameters.named` stands for; decoder blocks one by one."""
        blocks = [block for row in self.w_dec for block in row]
        single = {
            "w_enc": self.w_enc,
            "b_enc": self.b_enc,
            "threshold": self.threshold,
            "b_dec": self.b_dec,
            "w_skip": self.skip,
        }
        found = blocks if name == "w_dec" else [single[name]]
        return [leaf for leaf in found if leaf is not None]

    def leaves(self) -> list[Tensor]:
        """In the order of `Parameters.named`."""
        thresholds = [] if self.threshold is None else [self.threshold]
        skips = [] if self.skip is None else [self.skip]
        return [
            self.w_enc,
            self.b_enc,
            *thresholds,
            *(block for row in self.w_dec for block in row),
            self.b_dec,
            *skips,
        ]

    def grads(self) -> dict[str, Tensor]:
        """By the names of `Parameters.named`; a tensor that no loss depends on has none."""
        grads = {
            "w_enc": self.w_enc.grad,
            "b_enc": self.b_enc.grad,
            "w_dec": torch.stack([block.grad for row in self.w_dec for block in row if block.grad is not None]),
            "b_dec": self.b_dec.grad,
            "threshold": None if self.threshold is None else self.threshold.grad,
            "w_skip": None if self.skip is None else self.skip.grad,
        }
        return {name: grad for name, grad in grads.items() if grad is not None}
