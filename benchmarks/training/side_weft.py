"""weft's own training step: what a worker does between two batches, on one rank or as one of several."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from kernel_watch import watch
from serving import Done, Shape, serve

from weft_clt.config import TrainingConfig
from weft_clt.kernels import CpuKernels
from weft_clt.mesh import make_mesh
from weft_clt.normalization import Normalization
from weft_clt.recipes import RunSize, demo, find_recipe
from weft_clt.trainer import Batch, Trainer

__all__ = ["make", "trainer_of"]

_NUM_STEPS = 1_000_000


def _config(shape: Shape) -> TrainingConfig:
    if shape.activation == "jump-relu":
        size = RunSize("datasets/bench", num_features=shape.num_features, num_steps=_NUM_STEPS)
        config = find_recipe("clt-forge-gpt2").make(size)
    else:
        config = demo("datasets/bench")
        features = replace(config.features, num_features=shape.num_features, top_k=shape.active)
        config = replace(config, features=features)
    return replace(
        config,
        mesh=replace(config.mesh, feature_ranks=shape.num_ranks),
        batch=replace(config.batch, step_tokens=shape.num_tokens, num_steps=_NUM_STEPS),
    )


def _meet(shape: Shape) -> None:
    """Join the other ranks."""
    if shape.num_ranks > 1:
        store = dist.FileStore(shape.meeting, shape.num_ranks)  # type: ignore[attr-defined]
        alone = timedelta(minutes=5)  # until a rank gives up that another has left
        dist.init_process_group("gloo", timeout=alone, store=store, rank=shape.rank, world_size=shape.num_ranks)
        atexit.register(dist.destroy_process_group)


def trainer_of(shape: Shape, kernels: CpuKernels) -> tuple[Trainer, Batch]:
    """Random weights and data; biases for JumpReLU such that as many features are active as asked."""
    layers, tokens, d_model = shape.num_layers, shape.num_tokens, shape.d_model
    zeros = np.zeros((layers, d_model))
    units = Normalization(np.ones(layers), np.ones(layers), zeros, zeros)
    mesh = make_mesh(shape.num_ranks, 1)
    trainer = Trainer(_config(shape), units, mesh, kernels, num_layers=layers, d_model=d_model)
    torch.manual_seed(0)
    inputs_LTD, targets_LTD = torch.randn(2, layers, tokens, d_model)
    params = trainer.params
    if params.threshold_LS is not None:
        firing = max(1, round(tokens * shape.active / shape.num_features))
        for layer in range(layers):
            preact_TS = inputs_LTD[layer] @ params.w_enc_LSD[layer].T
            largest_KS = preact_TS.topk(firing + 1, dim=0).values
            params.b_enc_LS[layer] = params.threshold_LS[layer] - largest_KS[-2:].mean(0)
        trainer.step = 1  # the first step would set the biases to others
    # The ranks have one set of tokens, and each brings its own.
    own = slice(mesh.rank * trainer.rank_tokens, (mesh.rank + 1) * trainer.rank_tokens)
    return trainer, Batch(inputs_LTD[:, own].contiguous(), targets_LTD[:, own].contiguous(), trainer.rank_tokens)


def make(shape: Shape) -> Callable[[], Done]:
    """Meet the other ranks, and watch the kernels."""
    _meet(shape)
    kernels = CpuKernels()
    trainer, batch = trainer_of(shape, kernels)
    seconds = watch(kernels)

    def step() -> Done:
        seconds.clear()
        active = trainer.train_step(batch).l0
        return Done(active=active, parts_s=dict(seconds))

    return step


if __name__ == "__main__":
    serve(make)
