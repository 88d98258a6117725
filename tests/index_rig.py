"""
A sealed dataset, a transcoder and the sequences behind them, small and made of eighths: float32 sums of them are exact,
so that a recount in float64 comes to the very same numbers.

    IndexRig.make(store, ...)     the bucket
    rig.activations(layer)        every feature at every position, recounted
    rig.source                    the port SequenceSource
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from weft_attribution.core.feature_index.gathering import NUM_BINS
from weft_attribution.core.feature_index.loops import fold
from weft_attribution.core.feature_index.sequences import HarvestedSequences
from weft_attribution.core.feature_index.settings import IndexRequest, IndexSettings
from weft_cache.core.records import DatasetSpec, ShardRecord, Split
from weft_common.errors import NotFoundError
from weft_store.port import ObjectStore
from weft_store.shard import CodecSpec, encode_shard

REVISION = "ab" * 32
Array = np.ndarray[Any, Any]


@dataclass
class IndexRig:
    """What there is, and what is in it."""

    store: ObjectStore
    num_layers: int
    num_features: int
    d_model: int
    token_ids: list[Array]
    skipped: list[Array]
    left_out: list[Array]
    inputs: list[Array]
    encoders: list[tuple[Array, Array, Array]]
    decoders: list[Array]
    norm_limits: tuple[float, ...] = ()
    asked: int = 0

    async def sequences(self, dataset: str, *, held_out: bool, max_tokens: int) -> HarvestedSequences:
        """The port SequenceSource."""
        self.asked += 1
        if held_out:
            raise NotFoundError("no such split here")
        count, tokens = 0, 0
        for ids, skipped in zip(self.token_ids, self.skipped, strict=True):
            if max_tokens and tokens >= max_tokens:
                break
            count, tokens = count + 1, tokens + len(ids) - len(skipped)
        return HarvestedSequences(REVISION, self.token_ids[:count], self.skipped[:count], self.norm_limits)

    def kept(self, sequence: int) -> Array:
        """Positions of a sequence that the dataset holds."""
        out = np.union1d(self.skipped[sequence], self.left_out[sequence])
        return np.setdiff1d(np.arange(len(self.token_ids[sequence])), out)

    def activations(self, layer: int, num_sequences: int | None = None) -> Array:
        """[P, F] over all positions of all sequences, float64; NaN where the dataset has no token."""
        weight_FD, bias_F, threshold_F = (each.astype(np.float64) for each in self.encoders[layer])
        rows = []
        for sequence in range(num_sequences or len(self.token_ids)):
            kept = self.kept(sequence)
            pre = self.inputs[sequence][layer][kept].astype(np.float64) @ weight_FD.T + bias_F
            acts = np.full((len(self.token_ids[sequence]), len(bias_F)), np.nan)
            acts[kept] = np.where(pre > threshold_F, pre, 0.0)
            rows.append(acts)
        return np.concatenate(rows)

    def request(self, index_id: str = "i1", max_tokens: int = 0, **settings: Any) -> IndexRequest:
        """A request for an index of it."""
        small = {"num_top": 3, "num_sampled": 4, "num_quantiles": 2, "window_tokens": 5, "pool_windows": 16}
        chosen = IndexSettings(**{**small, "num_neighbours": 3, "coactivation_tokens": 20, **settings})
        return IndexRequest("t", index_id, "d", held_out=False, max_tokens=max_tokens, settings=chosen)

    @classmethod
    def make(
        cls,
        store: ObjectStore,
        lengths: Sequence[int] = (9, 4, 12, 7, 2, 30, 11),
        *,
        num_layers: int = 2,
        num_features: int = 6,
        d_model: int = 4,
        shard_sequences: int = 3,
        seed: int = 0,
        row_group_tokens: int = 8,
        left_out: Sequence[tuple[int, int]] = (),
        bias: float = -0.25,
    ) -> "IndexRig":
        """Make the bucket: `lengths` of the sequences; `left_out` are (sequence, position) that norms leave out."""
        rng = np.random.default_rng(seed)

        def draw(*shape: int, by: int = 8, most: int = 4) -> Array:
            return (rng.integers(-most, most + 1, shape) / by).astype(np.float32)

        rig = cls(
            store,
            num_layers,
            num_features,
            d_model,
            token_ids=[rng.integers(0, 40, length) for length in lengths],
            skipped=[np.array([0, *([2] if length == 12 else [])]) for length in lengths],
            left_out=[
                np.array([at for where, at in left_out if where == number], np.int64) for number in range(len(lengths))
            ],
            inputs=[draw(num_layers, length, d_model) for length in lengths],
            encoders=[
                (draw(num_features, d_model), draw(num_features) + np.float32(bias), np.abs(draw(num_features, most=2)))
                for _ in range(num_layers)
            ],
            decoders=[draw(num_features, num_layers - layer, d_model) for layer in range(num_layers)],
        )
        rig.decoders[0][0] = 0
        rig.encoders[0][1][-1] = -100.0
        rig._put_transcoder()
        rig._put_dataset(shard_sequences, row_group_tokens)
        return rig

    def _put_transcoder(self) -> None:
        for layer, (weight_FD, bias_F, threshold_F) in enumerate(self.encoders):
            encoder = {
                f"W_enc_{layer}": weight_FD,
                f"b_enc_{layer}": bias_F,
                f"b_dec_{layer}": np.zeros(self.d_model, np.float32),
                f"threshold_{layer}": threshold_F,
            }
            prefix = "transcoders/t/"
            self.store.put(f"{prefix}W_enc_{layer}.safetensors", safetensors.numpy.save(encoder))
            decoder = {f"W_dec_{layer}": self.decoders[layer]}
            self.store.put(f"{prefix}W_dec_{layer}.safetensors", safetensors.numpy.save(decoder))
        manifest = {"model": "tiny", "model_revision": REVISION, "input_hook": "mlp_in", "output_hook": "mlp_out"}
        self.store.put("transcoders/t/manifest.json", json.dumps(manifest).encode())

    def _put_dataset(self, shard_sequences: int, row_group_tokens: int) -> None:
        rows = [
            np.concatenate(
                [
                    self.inputs[number][:, self.kept(number)]
                    for number in range(first, min(first + shard_sequences, len(self.token_ids)))
                ],
                axis=1,
            )
            for first in range(0, len(self.token_ids), shard_sequences)
        ]
        put_dataset(self.store, rows, shard_sequences=shard_sequences, row_group_tokens=row_group_tokens)


def put_dataset(
    store: ObjectStore,
    shards: Sequence[Array],
    *,
    dataset: str = "d",
    revision: str = REVISION,
    shard_sequences: int = 1,
    row_group_tokens: int = 8,
) -> None:
    """Write a sealed dataset of the model `tiny`, as its catalog does; `shards` are inputs, [L, T, D] each."""
    num_layers, _, d_model = shards[0].shape
    lineage = {"spec": {"lease_sequences": shard_sequences, "output_hook": "mlp_out"}}
    spec = DatasetSpec(
        "models/tiny", revision, num_layers, d_model, "mlp_in", "mlp_out", "bf16", 0.0, "corpora/c", REVISION,
        json.dumps(lineage),
    )  # fmt: skip
    records = []
    for number, rows in enumerate(shards):
        both, codec = {"input": rows, "output": rows}, CodecSpec("bf16", 0.0)
        encoded = encode_shard(both, codec, row_group_tokens=row_group_tokens, attributes={})
        key = f"datasets/{dataset}/shards/{number}-0f.weft"
        store.put(key, encoded.data)
        size = len(encoded.data)
        records.append(
            ShardRecord(number, key, encoded.sha256, size, rows.shape[1], Split.TRAIN, row_group_tokens).to_json()
        )
    manifest = {
        "create_time": datetime.now(UTC).isoformat(),
        "spec": asdict(spec),
        "state": "sealed",
        "shards": records,
    }
    store.put(f"datasets/{dataset}/manifest.json", json.dumps(manifest).encode())


def histogram_bins(value_N: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Bin of each activation, as an index counts it: each is a feature of its own that is active once."""
    num = len(value_N)
    acts_FP, histogram_FB = value_N[:, None].copy(), np.zeros((num, NUM_BINS), np.int64)
    found = fold(
        acts_FP, acts_FP.view(np.int32), np.full(num, -np.inf, np.float32), np.ones(1, bool), np.zeros(1, np.int64),
        NUM_BINS // 2, np.zeros(num, np.int64), np.zeros(num), np.full(num, -np.inf, np.float32), histogram_FB,
        np.zeros(num, np.int64), np.zeros(num, np.int64), np.zeros(num, np.float32),
    )  # fmt: skip
    assert found == num
    assert (histogram_FB.sum(axis=1) == 1).all()
    return histogram_FB.argmax(axis=1)
