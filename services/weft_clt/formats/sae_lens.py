"""
SAELens's layout of per-layer transcoders: a folder a layer, at any depth, or one folder for a model of one layer.

    cfg.json                    architecture, d_in, d_out, d_sae, normalize_activations, apply_b_dec_to_input,
                                metadata.hook_name, metadata.hook_name_out
    sae_weights.safetensors     W_enc [D, F]  b_enc [F]  W_dec [F, D]  b_dec [D]
                                threshold [F], for jumprelu_*   W_skip [D, D] (out, in), for *skip_transcoder

Architectures: transcoder, jumprelu_transcoder: relu(h) * 1[h > threshold]; skip_transcoder and jumprelu_skip_transcoder
add W_skip x.
The layer is the number in `hook_name`, blocks.{i}.NAME. Written: layer_{i}/.

Source: SAELens 6.54, `saes/transcoder.py`, `saes/sae.py`.
Shapes: F features, D d_model.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from weft_clt.formats.configurations import positive, read_json_table
from weft_clt.formats.files import LayoutFiles
from weft_clt.formats.representation import (
    MAX_LAYERS,
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
from weft_clt.formats.thresholds import above_zero
from weft_common.errors import DataLossError, FailedPreconditionError, NotFoundError

__all__ = ["SaeLensFiles", "write_sae_lens"]

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
_ARCHITECTURES = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")


class SaeLensFiles:
    """
    One transcoder a layer, of all layers of a model.

    Args:
        files: Where they lie.

    Raises:
        NotFoundError: There is no cfg.json.
        FailedPreconditionError: One is of another architecture, uses a normalisation, or they differ.
        DataLossError: A file or layer is missing, cut short, or not what its configuration says.
    """

    def __init__(self, files: LayoutFiles) -> None:
        folders = [name.removesuffix(CONFIG) for name in files.sizes() if f"/{name}".endswith(f"/{CONFIG}")]
        if not folders:
            raise NotFoundError(f"there is no '{CONFIG}' below '{files.where}'.", field="prefix")
        if len(folders) > MAX_LAYERS:
            raise FailedPreconditionError(f"{files.where} has {len(folders)} transcoders, more than {MAX_LAYERS}.")
        self._layers: dict[int, SafetensorsFile] = {}
        facts: set[TranscoderFacts] = set()
        for folder in sorted(folders):
            layer, described, file = _open(files, folder, len(folders))
            if layer in self._layers:
                raise FailedPreconditionError(
                    f"{self._layers[layer].key!r} and {file.key!r} are both of layer {layer}: give the folder of one "
                    "transcoder a layer.",
                    field="prefix",
                )
            self._layers[layer] = file
            facts.add(described)
        if sorted(self._layers) != list(range(len(folders))):
            raise DataLossError(
                f"{files.where} has transcoders of layers {sorted(self._layers)[:20]}: expected 0, 1, 2, ... of all "
                "layers of the model."
            )
        if len(facts) != 1:
            raise FailedPreconditionError(
                f"the transcoders in {files.where} differ in shape, hooks or kind: {sorted(map(str, facts))[:4]}.",
                field="prefix",
            )
        self._facts = facts.pop()

    @property
    def facts(self) -> TranscoderFacts:
        """What configurations and headers say."""
        return self._facts

    def encoder(self, layer: int) -> Encoder:
        """Read one layer's encoder."""
        file = self._layers[layer]
        return Encoder(
            w_enc_FD=file.read("W_enc").T,
            b_enc_F=file.read("b_enc"),
            threshold_F=np.maximum(file.read("threshold"), 0) if self._facts.has_thresholds else None,
            w_skip_DD=file.read("W_skip") if self._facts.has_skip else None,
        )

    def decoder(self, layer: int, target: int, features: slice) -> Array:
        """Read what some features write to their own layer."""
        if layer != target:
            raise ValueError(f"a per-layer transcoder of layer {layer} has no decoder to {target}")
        return self._layers[layer].read("W_dec", rows=features)

    def output_bias(self, target: int) -> Array:
        """Read a layer's output bias."""
        return self._layers[target].read("b_dec")


def write_sae_lens(source: TranscoderSource, folder: Path, model: str) -> Iterator[str]:
    """
    Write a folder a layer, layer_{i}, and yield every file's name once it is whole.

    Raises:
        FailedPreconditionError: Features write to later layers, or a threshold is negative.
    """
    facts = source.facts
    if facts.window != 1:
        raise FailedPreconditionError(
            f"its features write to up to {facts.window} layers, and SAELens has per-layer transcoders only: export it "
            "as circuit-tracer, clt-forge or llamascopium."
        )
    kind = ("jumprelu_" if facts.has_thresholds else "") + ("skip_" if facts.has_skip else "") + "transcoder"
    num_features, d_model = facts.num_features, facts.d_model
    for layer in range(facts.num_layers):
        config = {
            "architecture": kind,
            "d_in": d_model,
            "d_out": d_model,
            "d_sae": num_features,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": False,
            "normalize_activations": "none",
            "reshape_activations": "none",
            "metadata": {
                "model_name": model,
                "hook_name": f"blocks.{layer}.{peer_hook(facts.input_hook)}",
                "hook_name_out": f"blocks.{layer}.{peer_hook(facts.output_hook, output=True)}",
            },
        }
        place = folder / f"layer_{layer}"
        place.mkdir(parents=True, exist_ok=True)
        (place / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        yield f"layer_{layer}/{CONFIG}"
        shapes: dict[str, tuple[int, ...]] = {
            "W_enc": (d_model, num_features),
            "b_enc": (num_features,),
            "b_dec": (d_model,),
        }
        if facts.has_thresholds:
            shapes["threshold"] = (num_features,)
        if facts.has_skip:
            shapes["W_skip"] = (d_model, d_model)
        shapes["W_dec"] = (num_features, d_model)
        with writing_safetensors(place / WEIGHTS, shapes) as write:
            encoder = source.encoder(layer)
            write(encoder.w_enc_FD.T)
            write(encoder.b_enc_F)
            write(source.output_bias(layer))
            if facts.has_thresholds:
                write(above_zero(encoder.threshold_F, num_features, f"layer {layer}"))
            if encoder.w_skip_DD is not None:
                write(encoder.w_skip_DD)
            for features in blocks(num_features, d_model):
                write(source.decoder(layer, layer, features))
        yield f"layer_{layer}/{WEIGHTS}"


def _open(files: LayoutFiles, folder: str, num_layers: int) -> tuple[int, TranscoderFacts, SafetensorsFile]:
    """Check one transcoder: its layer, what it is, and its weights."""
    name = folder + CONFIG
    config = read_json_table(files, name)
    architecture = config.get("architecture")
    if architecture not in _ARCHITECTURES:
        raise FailedPreconditionError(
            f"{name} says architecture {str(architecture)[:40]!r}: only {', '.join(_ARCHITECTURES)} can be imported.",
            field="prefix",
        )
    for key, plain in (
        ("normalize_activations", "none"),
        ("reshape_activations", "none"),
        ("apply_b_dec_to_input", False),
        ("activation_fn", "relu"),
        ("activation_fn_str", "relu"),
    ):
        if config.get(key, plain) != plain:
            raise FailedPreconditionError(
                f"{name} says {key} is {str(config[key])[:40]!r}: only {plain!r} can be imported.", field="prefix"
            )
    d_model, num_features = positive(config, "d_in", name), positive(config, "d_sae", name)
    if positive(config, "d_out", name) != d_model:
        raise FailedPreconditionError(
            f"{name} says d_in {d_model} and d_out {config['d_out']}: only equal widths can be imported.",
            field="prefix",
        )
    layer, input_hook = _hook(config, "hook_name", name, output=False)
    output_layer, output_hook = _hook(config, "hook_name_out", name, output=True)
    if layer != output_layer:
        raise FailedPreconditionError(
            f"{name} reads layer {layer} and predicts layer {output_layer}: only the same can be imported.",
            field="prefix",
        )
    file = SafetensorsFile(files, folder + WEIGHTS)
    with_threshold, with_skip = architecture.startswith("jumprelu"), "skip" in architecture
    expected: dict[str, tuple[int, ...]] = {
        "W_enc": (d_model, num_features),
        "b_enc": (num_features,),
        "W_dec": (num_features, d_model),
        "b_dec": (d_model,),
    }
    if with_threshold:
        expected["threshold"] = (num_features,)
    if with_skip:
        expected["W_skip"] = (d_model, d_model)
    file.expect(expected)
    facts = TranscoderFacts(
        num_layers=num_layers,
        num_features=num_features,
        d_model=d_model,
        input_hook=input_hook,
        output_hook=output_hook,
        has_thresholds=with_threshold,
        window=1,
        has_skip=with_skip,
    )
    return layer, facts, file


def _hook(config: Mapping[str, Any], key: str, name: str, *, output: bool) -> tuple[int, str]:
    """Return layer and hook, from `metadata` or, as older releases wrote it, from the top."""
    metadata = config.get("metadata")
    found = metadata.get(key) if isinstance(metadata, dict) and key in metadata else config.get(key)
    point = hook_point(found) if isinstance(found, str) else None
    if point is None:
        raise DataLossError(f"{name} says {key} is {str(found)[:80]!r}: expected blocks.LAYER.NAME.")
    layer, hook = point
    return layer, hook_of_layer(hook, output=output)
