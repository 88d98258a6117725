"""
What a CLT loses by training on what a codec keeps: explained variance on raw held-out tokens, seed by seed.

Tokens, trainer and evaluator are those of `benchmarks/training/quality`; a codec's tokens are the raw training tokens,
coded and decoded. All runs of a seed see the same tokens in the same order.
Shapes: N tokens, L layers, D d_model.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peer import Peer

from weft_store import open_store
from weft_store.shard import CodecSpec, ShardReader, basis_key, encode_shard, learn_basis

__all__ = ["TrainingSize", "training_rows"]

Row = dict[str, Any]
_Streams = dict[str, NDArray[np.float32]]
_SHARD_TOKENS = 8192
_WANTED = 0.002


@dataclass(frozen=True)
class TrainingSize:
    """How much is trained, and where tokens lie."""

    model: Path
    folder: Path
    first_layer: int = 12
    num_layers: int = 5
    num_features: int = 1024
    train_tokens: int = 32_768
    held_out_tokens: int = 4_096
    num_steps: int = 192
    step_tokens: int = 256
    top_k: int = 16
    seeds: int = 3


def training_rows(size: TrainingSize, peer: Peer | None, threads: int) -> Iterator[Row]:
    """Yield a row a codec: `ours` is the mean explained variance on its codes, `peer` that on raw bfloat16."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))
    from quality.arms import Training, own_jobs
    from quality.evaluator import evaluate
    from quality.sides import train_weft
    from quality.tokens import TokenSize, make_tokens

    from weft_activations.core.ports import Split

    torch.set_num_threads(threads)
    wanted = TokenSize(size.first_layer, size.num_layers, size.train_tokens, size.held_out_tokens)
    raw = make_tokens(size.model, wanted, size.folder, threads=threads)
    training = Training(size.num_features, size.num_steps, size.step_tokens)
    jobs = own_jobs(training, raw.digest, seeds=range(1, size.seeds + 1), top_ks=[size.top_k], sparsity_coeffs=[])
    jobs_of_arm = [job for job in jobs if job.arm == "top-k"]
    inputs, outputs = (np.asarray(part, np.float32).transpose(1, 0, 2) for part in raw.read(Split.TRAIN))
    streams = {"input": np.ascontiguousarray(inputs), "output": np.ascontiguousarray(outputs)}
    arms: dict[str, Callable[[], _Streams]] = {
        "raw bf16": lambda: _through(streams, "bf16", 0.0),
        "uniform, FVU 1e-3": lambda: _through(streams, "uniform", 1e-3),
        "uniform, FVU 1e-2": lambda: _through(streams, "uniform", 1e-2),
        "klt, FVU 1e-3": lambda: _through(streams, "klt", 1e-3),
    }
    if peer:
        arms["CLT-Forge's int8"] = lambda: _through_peer(streams, peer, size.folder)
    found: dict[str, list[float]] = {}
    for name, make in arms.items():
        home = size.folder / "coded"
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(raw.folder, home)
        data = replace(raw, folder=home)
        for stream, values_LND in make().items():
            np.save(data.path(Split.TRAIN, f"{stream}s"), values_LND.transpose(1, 0, 2).astype(np.float16))
        for job in jobs_of_arm:
            weights, _ = train_weft(job, data)
            held_out = ((i.float(), o.float()) for i, o in _held_out(raw.read(Split.HELD_OUT)))
            found.setdefault(name, []).append(evaluate(weights, held_out).explained_variance)
            print(f"{name}, seed {job.seed}: explained variance {found[name][-1]:.4f}", flush=True)
        shutil.rmtree(home)
    base = found.pop("raw bf16")
    for name, values in found.items():
        lost = [exact - value for exact, value in zip(base, values, strict=True)]
        yield {
            "name": f"training on {name} beside raw bfloat16: explained variance",
            "ours": statistics.mean(values), "peer": statistics.mean(base),
            "ratio": statistics.mean(values) / statistics.mean(base), "unit": "1", "of": "training",
            "lost": lost, "wanted": _WANTED,
            "conditions": f"{raw.meta['model']}, {size.num_layers} layers from {size.first_layer}, "
            f"{json.dumps({'F': size.num_features, 'k': size.top_k, 'steps': size.num_steps})}, {size.step_tokens} "
            f"tokens a step of {size.train_tokens}, {size.held_out_tokens} raw held-out tokens, {size.seeds} seeds; "
            "tokens above 20 times a layer's mean norm left out",
        }  # fmt: skip


def _held_out(streams: tuple[NDArray[np.float16], NDArray[np.float16]]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    inputs, outputs = streams
    for start in range(0, len(inputs), 512):
        rows = slice(start, start + 512)
        yield torch.from_numpy(inputs[rows].copy()), torch.from_numpy(outputs[rows].copy())


def _through(streams: _Streams, codec: str, target: float) -> _Streams:
    """Write shards as a harvest does, with one basis from the first, and read them."""
    parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in streams}
    store, basis = open_store("memory://"), None
    spec = CodecSpec(codec, target)
    for start in range(0, streams["input"].shape[1], _SHARD_TOKENS):
        rows = {
            name: np.ascontiguousarray(values[:, start : start + _SHARD_TOKENS]) for name, values in streams.items()
        }
        if codec == "klt" and basis is None:
            basis = learn_basis(rows)
            store.put(basis_key("a/shards/0", basis.sha256), basis.data())
        key = f"a/shards/{start}"
        store.put(key, encode_shard(rows, spec, attributes={}, basis=basis).data)
        reader = ShardReader(store, key)
        for group in range(reader.header.num_row_groups):
            for name, read in reader.read_row_group(group).items():
                parts[name].append(read)
    return {name: np.concatenate(read, axis=1) for name, read in parts.items()}


def _through_peer(streams: _Streams, peer: Peer, folder: Path) -> _Streams:
    read = {}
    for name, values in streams.items():
        np.save(folder / "given.npy", values)
        peer.ask("decoded", file=str(folder / "given.npy"), out=str(folder / "read.npy"))
        read[name] = np.load(folder / "read.npy")
    return read
