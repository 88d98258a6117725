"""
CLT-Forge's layout.

    clt_cfg.json                    d_in, d_latent, n_layers, cross_layer_decoders, feature_sharding, ...
    clt_weights.safetensors, or rank{r}_clt_weights.safetensors where feature_sharding is true:
        W_enc [L, D, F]  b_enc [L, F]  log_threshold [L, F]
        W_dec [P, F, D]  b_dec [P, D]       P = L (L + 1) / 2 pairs in upper-triangle order, source by source;
                                            P = L, layer by layer, where cross_layer_decoders is false
        estimated_norm_scaling_factor_in [L]  estimated_norm_scaling_factor_out [L]
        feature_count [L, F] int64  layer_mask [L, P]       of no use after training
    Ranks hold F / R features each; b_dec and the scales are the same on all.

Folded when read: W_enc *= s_in; W_dec to t /= s_out[t]; b_dec is the sum over a target's pairs / s_out[t];
threshold = exp(log_threshold); b_enc stays. It reads ln2.hook_normalized, `mlp_normalized` here; the configuration of a
file that weft wrote names what it reads instead.
Written: scales of 1, the bias at the pair (t, t), thresholds of at least 1.2e-38 (there is no other way to say 0).

Source: CLT-Forge at dcf4cc8, `clt.py`, `attribution/loading.py`.
Shapes: L layers, F features, D d_model, P pairs, R ranks.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from weft_clt.formats.configurations import boolean, positive, read_json_table
from weft_clt.formats.files import LayoutFiles
from weft_clt.formats.representation import (
    INPUT_HOOKS,
    MAX_LAYERS,
    MLP_NORMALIZED,
    Array,
    Encoder,
    TranscoderFacts,
    TranscoderSource,
    blocks,
)
from weft_clt.formats.safetensors_reading import SafetensorsFile, check_finite
from weft_clt.formats.safetensors_writing import writing_safetensors
from weft_clt.formats.thresholds import exponential, logarithm
from weft_common.errors import DataLossError

__all__ = ["CltForgeFiles", "write_clt_forge"]

CONFIG = "clt_cfg.json"
_WEIGHTS = "clt_weights.safetensors"
_SHARD = re.compile(r"rank(0|[1-9][0-9]{0,3})_clt_weights\.safetensors")
_HOOK = "weft_input_hook"


class CltForgeFiles:
    """
    Files in this layout, of one rank or many.

    Args:
        files: Where they lie.

    Raises:
        NotFoundError: There is no clt_cfg.json.
        DataLossError: A file is missing, cut short, or not what the configuration says.
    """

    def __init__(self, files: LayoutFiles) -> None:
        config = read_json_table(files, CONFIG)
        num_layers, d_model = positive(config, "n_layers", CONFIG, MAX_LAYERS), positive(config, "d_in", CONFIG)
        num_features = positive(config, "d_latent", CONFIG)
        crossing = boolean(config, "cross_layer_decoders", CONFIG)
        input_hook = config.get(_HOOK, MLP_NORMALIZED)
        if input_hook not in INPUT_HOOKS:
            raise DataLossError(
                f"{CONFIG} says {_HOOK} is {str(input_hook)[:40]!r}: expected one of {', '.join(INPUT_HOOKS)}."
            )
        names = [_WEIGHTS]
        if boolean(config, "feature_sharding", CONFIG, default=False):
            ranks = sorted(int(match[1]) for name in files.sizes() if (match := _SHARD.fullmatch(name)))
            if not ranks or ranks != list(range(len(ranks))):
                raise DataLossError(f"{files.where} has weights of ranks {ranks[:20]}: expected 0, 1, 2, ... all.")
            names = [f"rank{rank}_{_WEIGHTS}" for rank in ranks]
        if num_features % len(names):
            raise DataLossError(f"{files.where} splits {num_features} features over {len(names)} ranks: not even.")
        self._facts = TranscoderFacts(
            num_layers=num_layers,
            num_features=num_features,
            d_model=d_model,
            input_hook=input_hook,
            output_hook="mlp_out",
            has_thresholds=True,
            window=num_layers if crossing else 1,
        )
        pairs, share = self._facts.num_pairs, num_features // len(names)
        self._share = share
        self._shards = [SafetensorsFile(files, name) for name in names]
        for shard in self._shards:
            shard.expect(
                {
                    "W_enc": (num_layers, d_model, share),
                    "b_enc": (num_layers, share),
                    "log_threshold": (num_layers, share),
                    "W_dec": (pairs, share, d_model),
                    "b_dec": (pairs, d_model),
                    "estimated_norm_scaling_factor_in": (num_layers,),
                    "estimated_norm_scaling_factor_out": (num_layers,),
                }
            )
        self._scale_in_L, self._scale_out_L = (
            _scales(self._shards[0], f"estimated_norm_scaling_factor_{side}") for side in ("in", "out")
        )

    @property
    def facts(self) -> TranscoderFacts:
        """What configuration and headers say."""
        return self._facts

    def encoder(self, layer: int) -> Encoder:
        """Read one layer's encoder, all ranks joined."""
        w_enc_FD = np.empty((self._facts.num_features, self._facts.d_model))
        for rank, shard in enumerate(self._shards):
            shard.read_turned("W_enc", layer, w_enc_FD[rank * self._share : (rank + 1) * self._share])
        w_enc_FD *= self._scale_in_L[layer]
        threshold_F = np.concatenate([shard.read("log_threshold", layer) for shard in self._shards])
        return Encoder(
            w_enc_FD=w_enc_FD,
            b_enc_F=np.concatenate([shard.read("b_enc", layer) for shard in self._shards]),
            threshold_F=exponential(threshold_F, self._shards[0].key),
        )

    def decoder(self, layer: int, target: int, features: slice) -> Array:
        """Read what some features write to one layer."""
        pair = self._pair(layer, target)
        rows_fD = np.empty((features.stop - features.start, self._facts.d_model))
        for rank, shard in enumerate(self._shards):
            first = rank * self._share
            low, high = max(features.start, first), min(features.stop, first + self._share)
            if low < high:
                part = shard.read("W_dec", pair, rows=slice(low - first, high - first))
                rows_fD[low - features.start : high - features.start] = part
        rows_fD /= self._scale_out_L[target]
        return rows_fD

    def output_bias(self, target: int) -> Array:
        """Sum the biases of a layer's pairs."""
        sources = [layer for layer in range(self._facts.num_layers) if target in self._facts.targets(layer)]
        parts = [self._shards[0].read("b_dec", self._pair(layer, target)).astype(np.float64) for layer in sources]
        total_D: Array = np.sum(parts, axis=0) / self._scale_out_L[target]
        return total_D

    def _pair(self, layer: int, target: int) -> int:
        return sum(len(self._facts.targets(source)) for source in range(layer)) + target - layer


def write_clt_forge(source: TranscoderSource, folder: Path, model: str) -> Iterator[str]:
    """
    Write both files, unsharded, and yield their names once they are whole.

    Raises:
        FailedPreconditionError: A threshold is negative, which exp(log_threshold) cannot be.
    """
    facts = source.facts
    crossing = facts.window > 1
    num_layers, num_features, d_model = facts.num_layers, facts.num_features, facts.d_model
    pairs = [
        (layer, target)
        for layer in range(num_layers)
        for target in (range(layer, num_layers) if crossing else (layer,))
    ]
    config = {
        "device": "cpu",
        "dtype": "float32",
        "seed": 0,
        "model_name": model,
        "d_in": d_model,
        "d_latent": num_features,
        "n_layers": num_layers,
        "jumprelu_bandwidth": 1.0,
        "jumprelu_init_threshold": 0.03,
        "normalize_decoder": False,
        "dead_feature_window": 1,
        "cross_layer_decoders": crossing,
        "context_size": 1,
        "l0_coefficient": 0.0,
        "feature_sharding": False,
        _HOOK: facts.input_hook,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    yield CONFIG
    shapes = {
        "feature_count": (num_layers, num_features),
        "W_enc": (num_layers, d_model, num_features),
        "b_enc": (num_layers, num_features),
        "log_threshold": (num_layers, num_features),
        "W_dec": (len(pairs), num_features, d_model),
        "b_dec": (len(pairs), d_model),
        "estimated_norm_scaling_factor_in": (num_layers,),
        "estimated_norm_scaling_factor_out": (num_layers,),
    }
    if crossing:
        shapes["layer_mask"] = (num_layers, len(pairs))
    with writing_safetensors(folder / _WEIGHTS, shapes, integers={"feature_count"}) as write:
        write(np.zeros(shapes["feature_count"], np.int64))
        biases, thresholds = [], []
        for layer in range(num_layers):
            encoder = source.encoder(layer)
            write(encoder.w_enc_FD.T)
            biases.append(encoder.b_enc_F)
            thresholds.append(logarithm(encoder.threshold_F, num_features, f"layer {layer}"))
        for array_F in (*biases, *thresholds):
            write(array_F)
        zero_D = np.zeros(d_model)
        for layer, target in pairs:
            there = target in facts.targets(layer)
            for features in blocks(num_features, d_model):
                size = features.stop - features.start
                write(source.decoder(layer, target, features) if there else np.zeros((size, d_model)))
        for layer, target in pairs:
            write(source.output_bias(target) if layer == target else zero_D)
        write(np.ones(2 * num_layers))
        if crossing:
            sources_P = np.array([layer for layer, _ in pairs])
            write(np.arange(num_layers)[:, None].astype(np.float32) == sources_P)
    yield _WEIGHTS


def _scales(file: SafetensorsFile, name: str) -> Array:
    scale_L = file.read(name).astype(np.float64)
    if not (scale_L > 0).all():
        raise DataLossError(f"{name} of {file.key!r} is {scale_L.tolist()[:20]}: expected numbers above 0.")
    return check_finite(scale_L, name)
