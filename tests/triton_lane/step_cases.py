"""Trainers of small cases in float32, which start where the reference's do in float64."""

from typing import Any

import torch
from tests.clt_cases import AUX, D_MODEL, JUMP_RELU, NUM_LAYERS, config_of, normalization, own_batch, trainer_of
from torch import Tensor

from weft_clt.config import TrainingConfig
from weft_clt.kernels import Kernels, ReferenceKernels
from weft_clt.mesh import Mesh
from weft_clt.trainer import Batch, Trainer

CASES: dict[str, tuple[dict[str, Any], int]] = {
    "top_k_aux": (AUX, 2),
    "jump_relu": (JUMP_RELU, 2),
    "batch_top_k_aux": ({"activation": "ACTIVATION_BATCH_TOP_K", "top_k": 1} | AUX, 2),
    "joint_top_k_window_aux": ({"activation": "ACTIVATION_JOINT_TOP_K", "decoder_span": 2, "top_k": 1} | AUX, 2),
    "micro_batches": ({"micro_batches": 2, "decoder_span": 1, "linear_skip": True}, 1),
}
"""Every way of selecting features, and steps enough that AuxK finds dead ones after one without any."""


def narrow_trainer(config: TrainingConfig, kernels: Kernels, mesh: Mesh, device: torch.device | None = None) -> Trainer:
    """A trainer in float32."""
    exact = trainer_of(config, ReferenceKernels(), mesh)
    made = Trainer(
        config, normalization(), mesh, kernels, num_layers=NUM_LAYERS, d_model=D_MODEL, dtype=torch.float32,
        device=device,
    )  # fmt: skip
    for (_, mine), (_, theirs) in zip(made.params.named(), exact.params.named(), strict=True):
        mine.copy_(theirs)
    return made


def batches(config: TrainingConfig, mesh: Mesh, step: int) -> list[Batch]:
    """A rank's batches of a step, float64: one for each pass."""
    whole = own_batch(step, mesh)
    passes, own = config.batch.passes, whole.num_valid // config.batch.passes

    def part(tensor: Tensor, number: int) -> Tensor:
        return tensor[:, number * own : (number + 1) * own].contiguous()

    return [Batch(part(whole.inputs_LOD, n), part(whole.targets_LOD, n), own) for n in range(passes)]


def train(trainer: Trainer, num_steps: int) -> list[tuple[float, float, float]]:
    """Do steps, and return the loss, L0 and AuxK's loss of each."""
    figures = []
    dtype, device = trainer.dtype, trainer.params.device
    for step in range(1, num_steps + 1):
        *others, last = [
            Batch(each.inputs_LOD.to(device, dtype), each.targets_LOD.to(device, dtype), each.num_valid)
            for each in batches(trainer.config, trainer.mesh, step)
        ]
        for batch in others:
            trainer.add_pass(batch)
        metrics = trainer.train_step(last)
        figures.append((metrics.loss, metrics.l0, metrics.aux_loss))
    return figures


def config_for(name: str, **mesh: int) -> TrainingConfig:
    """The configuration of a case."""
    return config_of(**CASES[name][0], **mesh)
