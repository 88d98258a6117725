"""weft's own training step on one rank: what a worker does between two batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from serving import Shape, serve

from weft_clt.config import TrainingConfig
from weft_clt.kernels import CpuKernels
from weft_clt.mesh import Mesh, SingleAxis
from weft_clt.normalization import Normalization
from weft_clt.recipes import RunSize, demo, find_recipe
from weft_clt.trainer import Batch, Trainer

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
        mesh=replace(config.mesh, feature_ranks=1),
        batch=replace(config.batch, step_tokens=shape.num_tokens, num_steps=_NUM_STEPS),
    )


def make(shape: Shape) -> Callable[[], float]:
    """Random weights and data; biases for JumpReLU such that as many features are active as asked."""
    layers, tokens, d_model = shape.num_layers, shape.num_tokens, shape.d_model
    zeros = np.zeros((layers, d_model))
    units = Normalization(np.ones(layers), np.ones(layers), zeros, zeros)
    kernels = CpuKernels()
    trainer = Trainer(
        _config(shape), units, Mesh(SingleAxis(), SingleAxis()), kernels, num_layers=layers, d_model=d_model
    )
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
    batch = Batch(inputs_LTD, targets_LTD, tokens)
    return lambda: trainer.train_step(batch).l0


if __name__ == "__main__":
    serve(make)
