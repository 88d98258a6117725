"""
llamascopium's layout (OpenMOSS Language-Model-SAEs) of a cross-layer transcoder.

    config.json                 sae_type: clt, d_model, expansion_factor, act_fn, norm_activation,
                                sparsity_include_decoder_norm, hook_points_in, hook_points_out
    sae_weights.safetensors     W_E [L, D, F]  b_E [L, F]
                                W_D.{t} [t + 1, F, D]: axis 0 the sources 0 to t     b_D.{t} [D]
                                activation_function.log_jumprelu_threshold [L, F], for jumprelu
                                dataset_average_activation_norm.{hook point}, scalars

Folded when read: with `norm_activation: dataset-wise`, s = sqrt(D) / average norm of each hook point, W_E *= s_in,
W_D.{t} /= s_out[t], b_D.{t} /= s_out[t]; with `inference` nothing. With `sparsity_include_decoder_norm`, the threshold
is compared with h * ||W_D||, so it is divided by a feature's decoder norm over all targets (before the scales).
TopK's kinds have no threshold: they are refused, and its own conversion to jumprelu comes first.

Source: Language-Model-SAEs at 95281ac7, `models/clt.py`, `models/sparse_dictionary.py`, `activation_functions.py`.
Shapes: L layers, F features, D d_model.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from weft_clt.formats.configurations import boolean, positive, read_json_table
from weft_clt.formats.files import LayoutFiles
from weft_clt.formats.representation import (
    Array,
    Encoder,
    TranscoderFacts,
    TranscoderSource,
    blocks,
    hook_of_layer,
    hook_point,
    peer_hook,
)
from weft_clt.formats.safetensors_reading import SafetensorsFile
from weft_clt.formats.safetensors_writing import writing_safetensors
from weft_clt.formats.thresholds import exponential, logarithm
from weft_common.errors import DataLossError, FailedPreconditionError

__all__ = ["LlamascopiumFiles", "write_llamascopium"]

CONFIG = "config.json"
WEIGHTS = "sae_weights.safetensors"
_THRESHOLD = "activation_function.log_jumprelu_threshold"


class LlamascopiumFiles:
    """
    Files in this layout.

    Args:
        files: Where they lie.

    Raises:
        NotFoundError: There is no config.json.
        FailedPreconditionError: It is another kind of dictionary, activation or normalisation.
        DataLossError: A file is missing, cut short, or not what the configuration says.
    """

    def __init__(self, files: LayoutFiles) -> None:
        config = read_json_table(files, CONFIG)
        if config.get("sae_type") != "clt":
            raise FailedPreconditionError(
                f"{CONFIG} says sae_type {str(config.get('sae_type'))[:40]!r}: only clt can be imported.",
                field="prefix",
            )
        activation = config.get("act_fn", "relu")
        if activation not in ("relu", "jumprelu"):
            raise FailedPreconditionError(
                f"{CONFIG} says act_fn {str(activation)[:40]!r}: only relu and jumprelu have a threshold a feature. "
                "Convert it to jumprelu with llamascopium's own topk_to_jumprelu_conversion first.",
                field="prefix",
            )
        d_model = positive(config, "d_model", CONFIG)
        factor = config.get("expansion_factor")
        if not isinstance(factor, int | float) or isinstance(factor, bool) or not 0 < factor < 1 << 20:
            raise DataLossError(f"{CONFIG} says expansion_factor is {factor!r}: expected a number above 0.")
        num_features = int(d_model * factor)
        points_in, points_out = (_hook_points(config, f"hook_points_{side}") for side in ("in", "out"))
        num_layers = len(points_in)
        if len(points_out) != num_layers or num_features < 1:
            raise DataLossError(
                f"{CONFIG} has {num_layers} hook_points_in, {len(points_out)} hook_points_out and {num_features} "
                "features: expected as many of one as of the other, and features."
            )
        self._facts = TranscoderFacts(
            num_layers=num_layers,
            num_features=num_features,
            d_model=d_model,
            input_hook=_hook(points_in, output=False),
            output_hook=_hook(points_out, output=True),
            has_thresholds=activation == "jumprelu",
            window=num_layers,
        )
        self._file = SafetensorsFile(files, WEIGHTS)
        expected: dict[str, tuple[int, ...]] = {
            "W_E": (num_layers, d_model, num_features),
            "b_E": (num_layers, num_features),
        }
        for target in range(num_layers):
            expected |= {f"W_D.{target}": (target + 1, num_features, d_model), f"b_D.{target}": (d_model,)}
        if self._facts.has_thresholds:
            expected[_THRESHOLD] = (num_layers, num_features)
        normalization = config.get("norm_activation", "dataset-wise")
        if normalization not in ("dataset-wise", "inference"):
            raise FailedPreconditionError(
                f"{CONFIG} says norm_activation {str(normalization)[:40]!r}: only dataset-wise and inference are the "
                "same for every token, so that they can be folded into the weights.",
                field="prefix",
            )
        scaled = normalization == "dataset-wise"
        if scaled:
            expected |= {_norm_name(point): () for point in (*points_in, *points_out)}
        self._file.expect(expected)
        self._scale_in_L = self._scales(points_in) if scaled else np.ones(num_layers)
        self._scale_out_L = self._scales(points_out) if scaled else np.ones(num_layers)
        self._by_norm = boolean(config, "sparsity_include_decoder_norm", CONFIG, default=True)

    @property
    def facts(self) -> TranscoderFacts:
        """What configuration and headers say."""
        return self._facts

    def encoder(self, layer: int) -> Encoder:
        """Read one layer's encoder; where thresholds are in units of decoder norms, all of its decoders too."""
        threshold_F = None
        if self._facts.has_thresholds:
            threshold_F = exponential(self._file.read(_THRESHOLD, layer), self._file.key)
            if self._by_norm:
                norm_F = self._decoder_norms(layer)
                # A feature that writes nothing may fire whenever it likes.
                threshold_F = np.where(norm_F > 0, threshold_F / np.where(norm_F > 0, norm_F, 1), threshold_F)
        w_enc_FD = np.empty((self._facts.num_features, self._facts.d_model))
        self._file.read_turned("W_E", layer, w_enc_FD)
        w_enc_FD *= self._scale_in_L[layer]
        return Encoder(
            w_enc_FD=w_enc_FD,
            b_enc_F=self._file.read("b_E", layer),
            threshold_F=threshold_F,
        )

    def decoder(self, layer: int, target: int, features: slice) -> Array:
        """Read what some features write to one layer."""
        rows_fD = self._file.read(f"W_D.{target}", layer, rows=features)
        scaled: Array = rows_fD.astype(np.float64) / self._scale_out_L[target]
        return scaled

    def output_bias(self, target: int) -> Array:
        """Read a layer's output bias."""
        bias_D: Array = self._file.read(f"b_D.{target}").astype(np.float64) / self._scale_out_L[target]
        return bias_D

    def _decoder_norms(self, layer: int) -> Array:
        squares_F = np.zeros(self._facts.num_features)
        for target in self._facts.targets(layer):
            for features in blocks(self._facts.num_features, self._facts.d_model):
                rows_fD = self._file.read(f"W_D.{target}", layer, rows=features).astype(np.float64)
                squares_F[features] += np.einsum("fd,fd->f", rows_fD, rows_fD)
        norm_F: Array = np.sqrt(squares_F)
        return norm_F

    def _scales(self, points: list[str]) -> Array:
        norm_L = np.array([float(self._file.read(_norm_name(point))) for point in points])
        if not (norm_L > 0).all():
            raise DataLossError(
                f"{self._file.key!r} has average norms {norm_L.tolist()[:20]}: expected numbers above 0. Save it with "
                "fold_activation_scale."
            )
        scale_L: Array = math.sqrt(self._facts.d_model) / norm_L
        return scale_L


def write_llamascopium(source: TranscoderSource, folder: Path, model: str) -> Iterator[str]:
    """
    Write both files, as `norm_activation: inference` and without decoder norms, and yield their names.

    Raises:
        FailedPreconditionError: A threshold is negative, which exp(log_jumprelu_threshold) cannot be.
    """
    facts = source.facts
    num_layers, num_features, d_model = facts.num_layers, facts.num_features, facts.d_model
    points = {
        side: [f"blocks.{layer}.{hook}" for layer in range(num_layers)]
        for side, hook in (("in", peer_hook(facts.input_hook)), ("out", peer_hook(facts.output_hook, output=True)))
    }
    config = {
        "sae_type": "clt",
        "d_model": d_model,
        "expansion_factor": _factor(num_features, d_model),
        "use_decoder_bias": True,
        "act_fn": "jumprelu" if facts.has_thresholds else "relu",
        "norm_activation": "inference",
        "sparsity_include_decoder_norm": False,
        "hook_points_in": points["in"],
        "hook_points_out": points["out"],
        "model_name": model,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    yield CONFIG
    shapes: dict[str, tuple[int, ...]] = {
        "W_E": (num_layers, d_model, num_features),
        "b_E": (num_layers, num_features),
    }
    if facts.has_thresholds:
        shapes[_THRESHOLD] = (num_layers, num_features)
    for target in range(num_layers):
        shapes |= {f"W_D.{target}": (target + 1, num_features, d_model), f"b_D.{target}": (d_model,)}
    shapes |= {_norm_name(point): () for point in dict.fromkeys(points["in"] + points["out"])}
    with writing_safetensors(folder / WEIGHTS, shapes) as write:
        vectors = []
        thresholds = []
        for layer in range(num_layers):
            encoder = source.encoder(layer)
            write(encoder.w_enc_FD.T)
            vectors.append(encoder.b_enc_F)
            if facts.has_thresholds:
                thresholds.append(logarithm(encoder.threshold_F, num_features, f"layer {layer}"))
        for array_F in (*vectors, *thresholds):
            write(array_F)
        for target in range(num_layers):
            for layer in range(target + 1):
                there = target in facts.targets(layer)
                for features in blocks(num_features, d_model):
                    size = features.stop - features.start
                    write(source.decoder(layer, target, features) if there else np.zeros((size, d_model)))
            write(source.output_bias(target))
        # Norms that make every scale 1.
        write(np.full(len(dict.fromkeys(points["in"] + points["out"])), math.sqrt(d_model)))
    yield WEIGHTS


def _norm_name(point: str) -> str:
    return f"dataset_average_activation_norm.{point}"


def _factor(num_features: int, d_model: int) -> float:
    """
    Return a factor of which int(d_model * factor) is the number of features.

    >>> all(int(d * _factor(f, d)) == f for d in range(1, 60) for f in range(1, 300))
    True
    """
    factor = num_features / d_model
    return factor if int(d_model * factor) == num_features else math.nextafter(factor, math.inf)


def _hook_points(config: Mapping[str, Any], key: str) -> list[str]:
    points = config.get(key)
    if not isinstance(points, list) or not all(isinstance(point, str) for point in points) or not points:
        raise DataLossError(f"{CONFIG} has no list of names {key}.")
    return points


def _hook(points: list[str], *, output: bool) -> str:
    """Return the one hook that all points have in common, layer by layer from 0."""
    found = [known for point in points if (known := hook_point(point)) is not None]
    names = {name for _, name in found}
    if [layer for layer, _ in found] != list(range(len(points))) or len(names) != 1:
        raise FailedPreconditionError(
            f"{CONFIG} has hook points {points[:4]}...: expected blocks.0.NAME, blocks.1.NAME and so on, of one NAME.",
            field="prefix",
        )
    return hook_of_layer(names.pop(), output=output)
