"""
Tokens that all sides train on: a model's MLP inputs and outputs, harvested once and kept in plain files.

    tokens-{digest}/meta.json                       written last
    tokens-{digest}/{train,held_out}-{inputs,outputs}.npy    [N, L, D] float16

They are made by the activations service's own library code, and kept in the units of training: every layer's mean norm
is sqrt(D), over the training tokens. What is left out is what a harvest leaves out: position 0 of every sequence, and
tokens whose output norm is 20 times a layer's mean. No document is in both splits.
Shapes: N tokens of a split, T of a step, L layers that are kept, M all layers of the model, D d_model.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft_activations.adapters.transformers_backend import TransformersBackend
from weft_activations.core.plan import plan_harvest
from weft_activations.core.ports import Split
from weft_client.demo.corpus import python_topics

__all__ = ["STREAMS", "TokenData", "TokenSize", "deal", "make_tokens"]

STREAMS = ("inputs", "outputs")
_HOOKS = ("mlp_in", "mlp_out")
_SEQUENCE_TOKENS, _LEASE_SEQUENCES = 256, 8
_MAX_NORM_RATIO = 20.0
_SPARE = 1.02
"""Planned over wanted: some tokens are left out for their norm."""
_VERSION = 1


@dataclass(frozen=True)
class TokenSize:
    """
    How much is harvested.

    Args:
        first_layer: The first that is kept; the others follow it.
        num_layers: L.
    """

    first_layer: int
    num_layers: int
    train_tokens: int
    held_out_tokens: int

    @property
    def layers(self) -> slice:
        """Which of M."""
        return slice(self.first_layer, self.first_layer + self.num_layers)


@dataclass(frozen=True)
class TokenData:
    """Tokens on disk."""

    folder: Path
    meta: dict[str, Any]

    @property
    def digest(self) -> str:
        """Of the model, the text and the size."""
        return str(self.meta["digest"])

    @property
    def size(self) -> TokenSize:
        """What was asked for."""
        return TokenSize(**self.meta["size"])

    @property
    def d_model(self) -> int:
        """D."""
        return int(self.meta["d_model"])

    def path(self, split: Split, stream: str) -> Path:
        """Where a stream of a split lies."""
        return self.folder / f"{split.value}-{stream}.npy"

    def read(self, split: Split) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
        """Map inputs and outputs of a split, [N, L, D] each."""
        inputs, outputs = (np.load(self.path(split, stream), mmap_mode="r") for stream in STREAMS)
        return inputs, outputs

    def means(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean input and output of the training tokens, [L, D] each."""
        inputs, outputs = (np.array(self.meta["means"][stream]) for stream in STREAMS)
        return inputs, outputs


def deal(num_tokens: int, *, num_steps: int, step_tokens: int, seed: int) -> NDArray[np.int64]:
    """
    Return the tokens of every step, [num_steps, T]: epoch after epoch in an order of its own, each token once an epoch.

    >>> deal(4, num_steps=3, step_tokens=2, seed=0)[:2].ravel().tolist() == [*range(4)]
    False
    >>> sorted(deal(4, num_steps=3, step_tokens=2, seed=0)[:2].ravel().tolist())
    [0, 1, 2, 3]
    """
    random = np.random.Generator(np.random.Philox(key=seed))
    epochs = -(-num_steps * step_tokens // num_tokens)
    order = np.concatenate([random.permutation(num_tokens) for _ in range(epochs)])
    return order[: num_steps * step_tokens].reshape(num_steps, step_tokens)


def make_tokens(model: Path, size: TokenSize, folder: Path, *, threads: int) -> TokenData:
    """
    Harvest Python's help topics, or find what was harvested before.

    Args:
        model: A Hugging Face folder.
        folder: Where tokens of all sizes lie.
        threads: Of the forward passes.

    Raises:
        SystemExit: The text has fewer tokens, or the model fewer layers.
        WeftError: The model cannot be run.
    """
    backend = TransformersBackend(model.parent, dtype="float32", device="cpu", threads=threads)
    info = backend.describe(model.name)
    if not 0 <= size.first_layer < size.first_layer + size.num_layers <= info.num_layers:
        raise SystemExit(
            f"Layers {size.first_layer} to {size.first_layer + size.num_layers - 1} were asked for; "
            f"{model.name} has {info.num_layers}: give others by --first-layer and --num-layers."
        )
    texts = [text for _, text in python_topics()]
    text_digest = hashlib.sha256(b"\0".join(texts)).hexdigest()
    made_from = {"version": _VERSION, "model": info.revision, "text": text_digest, "size": asdict(size)}
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:12]
    home = folder / f"tokens-{digest}"
    if (home / "meta.json").is_file():
        return TokenData(home, json.loads((home / "meta.json").read_text()))

    wanted = {Split.TRAIN: size.train_tokens, Split.HELD_OUT: size.held_out_tokens}
    num_tokens = round(_SPARE * sum(wanted.values()))
    plan = plan_harvest(
        [backend.tokenize(model.name, text.decode(), special_tokens=False) for text in texts],
        corpus_digest=text_digest,
        bos_token_id=info.bos_token_id,
        num_tokens=num_tokens,
        held_out_share=size.held_out_tokens / sum(wanted.values()),
        sequence_tokens=_SEQUENCE_TOKENS,
        lease_sequences=_LEASE_SEQUENCES,
    )
    home.mkdir(parents=True, exist_ok=True)
    data = TokenData(home, {"digest": digest, "size": asdict(size), "model": model.name, "d_model": info.d_model})
    kept = {
        split: [
            np.lib.format.open_memmap(
                data.path(split, stream), "w+", np.float16, (number, size.num_layers, info.d_model)
            )
            for stream in STREAMS
        ]
        for split, number in wanted.items()
    }
    filled = dict.fromkeys(wanted, 0)
    mean_norm_2L: NDArray[np.float64] | None = None
    for lease in plan.leases:
        room = wanted[lease.split] - filled[lease.split]
        if not room:
            continue
        streams_2MTD = np.empty((2, info.num_layers, lease.num_tokens, info.d_model), np.float32)
        backend.streams(
            model.name, lease.turns(_SEQUENCE_TOKENS * _LEASE_SEQUENCES), dict(zip(_HOOKS, streams_2MTD, strict=True))
        )
        streams_2LTD = streams_2MTD[:, size.layers]
        norm_2LT = np.linalg.norm(streams_2LTD, axis=3)
        if mean_norm_2L is None:
            mean_norm_2L = norm_2LT.mean(2, dtype=np.float64)
        within_T = (norm_2LT[1] < _MAX_NORM_RATIO * mean_norm_2L[1][:, None]).all(0)
        # About in the units of training, so that float16 holds them well; exactly in them once all are there.
        scale_2L = math.sqrt(info.d_model) / mean_norm_2L
        rows_2TLD = (streams_2LTD[:, :, within_T] * scale_2L[:, :, None, None]).transpose(0, 2, 1, 3)[:, :room]
        start = filled[lease.split]
        filled[lease.split] = stop = start + rows_2TLD.shape[1]
        for file, rows_TLD in zip(kept[lease.split], rows_2TLD, strict=True):
            file[start:stop] = rows_TLD
        print(f"harvest: {sum(filled.values()):,} of {sum(wanted.values()):,} tokens", flush=True)
    if filled != wanted:
        raise SystemExit(
            f"Of {num_tokens} tokens so many were left out for their norm that {sum(filled.values())} of "
            f"{sum(wanted.values())} are there; ask for fewer by --train-tokens or --held-out-tokens."
        )
    data.meta["text_digest"] = text_digest
    data.meta["means"] = {
        stream: _to_training_units(kept[Split.TRAIN][number], kept[Split.HELD_OUT][number]).tolist()
        for number, stream in enumerate(STREAMS)
    }
    (home / "meta.json").write_text(json.dumps(data.meta))
    return data


def _to_training_units(train_NLD: NDArray[np.float16], held_out_NLD: NDArray[np.float16]) -> NDArray[np.float64]:
    """Scale both in place by the training tokens' mean norms, and return the training tokens' mean, [L, D]."""
    norm_L, mean_LD = np.zeros(train_NLD.shape[1]), np.zeros(train_NLD.shape[1:])
    blocks = [slice(start, start + 1024) for start in range(0, len(train_NLD), 1024)]
    for block in blocks:
        norm_L += np.linalg.norm(train_NLD[block].astype(np.float32), axis=2).sum(0, dtype=np.float64)
    scale_L = (math.sqrt(train_NLD.shape[2]) * len(train_NLD) / norm_L).astype(np.float32)
    for block in blocks:
        train_NLD[block] = train_NLD[block] * scale_L[:, None]
        mean_LD += train_NLD[block].sum(0, dtype=np.float64)
    for start in range(0, len(held_out_NLD), 1024):
        held_out_NLD[start : start + 1024] = held_out_NLD[start : start + 1024] * scale_L[:, None]
    mean: NDArray[np.float64] = mean_LD / len(train_NLD)
    return mean
