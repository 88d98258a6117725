"""
One training step against a dense step in stock torch, at the demo's shape, in interleaved runs.

    python benchmarks/training/bench_step.py [--rounds 3] [--tokens 512]

Both run in this process on one thread, float32, the same data in memory, forward, backward, clipping and Adam. The peer
multiplies one concatenated dense activation matrix by one decoder matrix a target layer, with autograd and fused Adam.
Writes `.weft/bench/training.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_CACHE_DIR", str(Path.home() / ".cache" / "weft" / "numba"))

import numpy as np
import torch

from weft_clt.kernels import CpuKernels
from weft_clt.mesh import Mesh, SingleAxis
from weft_clt.normalization import Normalization
from weft_clt.recipes import demo
from weft_clt.trainer import Batch, Trainer

NUM_LAYERS, D_MODEL = 30, 576


class DenseStep:
    """TopK CLT as a short program in stock torch would have it."""

    def __init__(self, num_features: int, top_k: int) -> None:
        self.top_k = top_k
        self.w_enc = [torch.nn.Parameter(torch.randn(D_MODEL, num_features) / D_MODEL**0.5) for _ in range(NUM_LAYERS)]
        self.b_enc = [torch.nn.Parameter(torch.zeros(num_features)) for _ in range(NUM_LAYERS)]
        self.w_dec = [torch.nn.Parameter(torch.zeros((t + 1) * num_features, D_MODEL)) for t in range(NUM_LAYERS)]
        self.b_dec = [torch.nn.Parameter(torch.zeros(D_MODEL)) for _ in range(NUM_LAYERS)]
        self.params = [*self.w_enc, *self.b_enc, *self.w_dec, *self.b_dec]
        self.adam = torch.optim.Adam(self.params, lr=1e-3, fused=True)

    def step(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        acts = []
        for layer in range(NUM_LAYERS):
            preact = torch.addmm(self.b_enc[layer], inputs[layer], self.w_enc[layer])
            best = torch.topk(preact, self.top_k, dim=1, sorted=False)
            acts.append(torch.zeros_like(preact).scatter(1, best.indices, torch.relu(best.values)))
        loss = torch.zeros(())
        for target in range(NUM_LAYERS):
            predicted = torch.cat(acts[: target + 1], 1) @ self.w_dec[target] + self.b_dec[target]
            loss = loss + (predicted - targets[target]).square().sum() / inputs.shape[1]
        self.adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        self.adam.step()


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=512)
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = demo("datasets/bench")
    config = replace(
        config,
        mesh=replace(config.mesh, feature_ranks=1),
        batch=replace(config.batch, step_tokens=options.tokens, num_steps=1000),
    )
    zeros = np.zeros((NUM_LAYERS, D_MODEL))
    units = Normalization(np.ones(NUM_LAYERS), np.ones(NUM_LAYERS), zeros, zeros)
    mesh = Mesh(SingleAxis(), SingleAxis())
    ours = Trainer(config, units, mesh, CpuKernels(), num_layers=NUM_LAYERS, d_model=D_MODEL)
    peer = DenseStep(config.features.num_features, config.features.top_k)
    inputs = torch.randn(NUM_LAYERS, options.tokens, D_MODEL)
    batch = Batch(inputs, torch.randn_like(inputs), options.tokens)
    ours.train_step(batch)
    peer.step(batch.inputs_LOD, batch.targets_LOD)
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    for round_number in range(options.rounds):
        times["ours"].append(seconds(lambda: ours.train_step(batch)))
        times["peer"].append(seconds(lambda: peer.step(batch.inputs_LOD, batch.targets_LOD)))
        print(f"round {round_number + 1}: {times['ours'][-1]:.2f} s, dense {times['peer'][-1]:.2f} s")
    medians = {name: options.tokens / statistics.median(values) for name, values in times.items()}
    load = os.getloadavg()[0]
    row = {
        "name": "training step, one rank, against dense stock torch",
        "ours": medians["ours"],
        "peer": medians["peer"],
        "ratio": medians["ours"] / medians["peer"],
        "unit": "tokens/s",
        "conditions": f"L {NUM_LAYERS}, d {D_MODEL}, F {config.features.num_features}, k {config.features.top_k}, "
        f"{options.tokens} tokens a step, float32, 1 thread, torch {torch.__version__}, median of {options.rounds} "
        f"interleaved rounds, load average {load:.1f}",
    }
    path = Path(".weft/bench/training.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([row], indent=1) + "\n")
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
