"""
circuit-tracer's layout of a cross-layer transcoder, which is weft's own too.

    config.yaml                 model_name, model_kind: cross_layer_transcoder, feature_input_hook, feature_output_hook
    W_enc_{i}.safetensors       W_enc_{i} [F, D], b_enc_{i} [F], b_dec_{i} [D], optional threshold_{i} [F],
                                W_skip_{i} [D, D] and rank_norm_{i} [F]
    W_dec_{i}.safetensors       W_dec_{i} [F, S, D]: axis 1 the targets i to i + S - 1

Layers are contiguous from 0. circuit-tracer wants S = L - i. weft also keeps transcoders whose features write to fewer
layers, S = min(window, L - i), so that a per-layer one takes L decoders and not L (L + 1) / 2; and linear skips, W_skip
(out, in), with a model_kind that circuit-tracer does not take, since it would leave them out. What counts has `top_k`
and `top_k_over` (layer, layers) in config.yaml, and rank_norm where it counts over layers; circuit-tracer sees the
thresholds beside them, by which features fire as often.

Source: circuit-tracer 0.5.0, `transcoder/cross_layer_transcoder.py`. Its JumpReLU is h * 1[h > threshold].
Shapes: L layers, F features, D d_model, S targets.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from weft_clt.formats.files import LayoutFiles, read_text
from weft_clt.formats.representation import (
    MAX_LAYERS,
    Array,
    Encoder,
    TranscoderFacts,
    TranscoderSource,
    blocks,
    hook_of_layer,
    peer_hook,
)
from weft_clt.formats.safetensors_reading import SafetensorsFile
from weft_clt.formats.safetensors_writing import writing_safetensors
from weft_common.errors import DataLossError, FailedPreconditionError, NotFoundError

__all__ = ["CONFIG", "CircuitTracerFiles", "config_yaml", "read_config", "write_circuit_tracer"]

_FILE = re.compile(r"W_(enc|dec)_(0|[1-9][0-9]{0,3})\.safetensors")
CONFIG = "config.yaml"
KIND = "cross_layer_transcoder"
_SKIP_KIND = "cross_layer_transcoder_with_skip"
_OVER = {False: "layer", True: "layers"}
_COUNT = re.compile(r"[1-9][0-9]{0,8}")


class CircuitTracerFiles:
    """
    Files in this layout, checked by their headers.

    Args:
        files: Where they lie.

    Raises:
        NotFoundError: There is no config.yaml.
        FailedPreconditionError: It is another kind of transcoder, or reads a hook that weft does not have.
        DataLossError: A file is missing, cut short, or not what the layout says.
    """

    def __init__(self, files: LayoutFiles) -> None:
        config = read_config(files)
        has_skip = _check_kind(config.get("model_kind", ""), files)
        top_k, over_layers = _counting(config, files)
        layers = sorted(
            int(match[2]) for name in files.sizes() if (match := _FILE.fullmatch(name)) and match[1] == "enc"
        )
        if not layers or layers != list(range(len(layers))) or len(layers) > MAX_LAYERS:
            raise DataLossError(
                f"{files.where} has W_enc files of layers {layers[:20]}: expected 0, 1, 2, ... without a gap, "
                f"at most {MAX_LAYERS}. Copy the files again."
            )
        self._encoders = [SafetensorsFile(files, f"W_enc_{layer}.safetensors") for layer in layers]
        self._decoders = [SafetensorsFile(files, f"W_dec_{layer}.safetensors") for layer in layers]
        shape = self._encoders[0].shapes.get("W_enc_0", ())
        if len(shape) != 2 or 0 in shape:
            raise DataLossError(
                f"{files.where}W_enc_0.safetensors has W_enc_0 of shape {list(shape)}: expected [features, d_model]."
            )
        num_features, d_model = shape
        window = self._decoders[0].shapes.get("W_dec_0", (0, len(layers)))[1:2]
        with_threshold = 0
        for layer, (encoder, decoder) in enumerate(zip(self._encoders, self._decoders, strict=True)):
            expected: dict[str, tuple[int, ...]] = {
                f"W_enc_{layer}": (num_features, d_model),
                f"b_enc_{layer}": (num_features,),
                f"b_dec_{layer}": (d_model,),
            }
            if f"threshold_{layer}" in encoder.shapes:
                expected[f"threshold_{layer}"] = (num_features,)
                with_threshold += 1
            if over_layers:
                expected[f"rank_norm_{layer}"] = (num_features,)
            if has_skip:
                expected[f"W_skip_{layer}"] = (d_model, d_model)
            encoder.expect(expected, exactly=True)
            targets = min(*window, len(layers) - layer) if window and window[0] > 0 else len(layers) - layer
            decoder.expect({f"W_dec_{layer}": (num_features, targets, d_model)}, exactly=True)
        if with_threshold not in (0, len(layers)):
            raise DataLossError(
                f"{with_threshold} of {len(layers)} layers in {files.where} have thresholds: expected all or none."
            )
        if top_k and not with_threshold:
            raise DataLossError(f"{files.where} has top_k and no thresholds: expected them beside it. Copy it again.")
        self._facts = TranscoderFacts(
            num_layers=len(layers),
            num_features=num_features,
            d_model=d_model,
            input_hook=hook_of_layer(config.get("feature_input_hook", "")),
            output_hook=hook_of_layer(config.get("feature_output_hook", ""), output=True),
            has_thresholds=with_threshold > 0,
            window=window[0],
            has_skip=has_skip,
            top_k=top_k,
            over_layers=over_layers,
        )
        self._block: tuple[tuple[int, int, int], Array] | None = None
        self.names = sorted([CONFIG, *(f"W_{part}_{layer}.safetensors" for part in ("enc", "dec") for layer in layers)])

    @property
    def facts(self) -> TranscoderFacts:
        """What the headers say."""
        return self._facts

    def encoder(self, layer: int) -> Encoder:
        """Read one layer's encoder."""
        file = self._encoders[layer]
        return Encoder(
            w_enc_FD=file.read(f"W_enc_{layer}"),
            b_enc_F=file.read(f"b_enc_{layer}"),
            threshold_F=file.read(f"threshold_{layer}") if self._facts.has_thresholds else None,
            w_skip_DD=file.read(f"W_skip_{layer}") if self._facts.has_skip else None,
            rank_norm_F=file.read(f"rank_norm_{layer}") if self._facts.over_layers else None,
        )

    def decoder(self, layer: int, target: int, features: slice) -> Array:
        """Read what some features write to one layer."""
        # A feature's targets lie side by side, and whoever asks for one mostly asks for the next: read once.
        wanted = (layer, features.start, features.stop)
        if self._block is None or self._block[0] != wanted:
            self._block = None
            self._block = (wanted, self._decoders[layer].read(f"W_dec_{layer}", rows=features))
        return self._block[1][:, target - layer]

    def output_bias(self, target: int) -> Array:
        """Read a layer's output bias."""
        return self._encoders[target].read(f"b_dec_{target}")


def config_yaml(
    model: str, input_hook: str, output_hook: str, *, has_skip: bool = False, top_k: int = 0, over_layers: bool = False
) -> bytes:
    """
    Write config.yaml; `top_k` and `over_layers` as in `TranscoderFacts`.

    Raises:
        FailedPreconditionError: circuit-tracer has no name for a hook.
    """
    lines = [
        f"model_name: {json.dumps(model)}",
        f"model_kind: {_SKIP_KIND if has_skip else KIND}",
        f"feature_input_hook: {peer_hook(input_hook)}",
        f"feature_output_hook: {peer_hook(output_hook, output=True)}",
    ]
    if top_k:
        lines += [f"top_k: {top_k}", f"top_k_over: {_OVER[over_layers]}"]
    return ("\n".join(lines) + "\n").encode()


def write_circuit_tracer(source: TranscoderSource, folder: Path, model: str, *, padded: bool = True) -> Iterator[str]:
    """
    Write every file and yield its name once it is whole.

    Args:
        source: What to write.
        folder: Where to.
        model: Name of the model that it is for.
        padded: Write zeros where features have no decoder, as circuit-tracer wants it, and thresholds alone; else keep
            weft's shorter form, and what counts.
    """
    facts = source.facts
    config = config_yaml(
        model,
        facts.input_hook,
        facts.output_hook,
        has_skip=facts.has_skip,
        top_k=0 if padded else facts.top_k,
        over_layers=facts.over_layers,
    )
    (folder / CONFIG).write_bytes(config)
    yield CONFIG
    for layer in range(facts.num_layers):
        encoder = source.encoder(layer)
        tensors = {
            f"W_enc_{layer}": encoder.w_enc_FD,
            f"b_enc_{layer}": encoder.b_enc_F,
            f"b_dec_{layer}": source.output_bias(layer),
        }
        if encoder.threshold_F is not None:
            tensors[f"threshold_{layer}"] = encoder.threshold_F
        if encoder.w_skip_DD is not None:
            tensors[f"W_skip_{layer}"] = encoder.w_skip_DD
        if encoder.rank_norm_F is not None and not padded:
            tensors[f"rank_norm_{layer}"] = encoder.rank_norm_F
        name = f"W_enc_{layer}.safetensors"
        with writing_safetensors(folder / name, {key: array.shape for key, array in tensors.items()}) as write:
            for array in tensors.values():
                write(array)
        del encoder, tensors
        yield name
        targets = facts.targets(layer)
        num_targets = facts.num_layers - layer if padded else len(targets)
        shape = (facts.num_features, num_targets, facts.d_model)
        name = f"W_dec_{layer}.safetensors"
        with writing_safetensors(folder / name, {f"W_dec_{layer}": shape}) as write:
            for features in blocks(facts.num_features, num_targets * facts.d_model):
                rows = np.zeros((features.stop - features.start, *shape[1:]), dtype=np.float32)
                for target in targets:
                    rows[:, target - layer] = source.decoder(layer, target, features)
                write(rows)
        yield name


def read_config(files: LayoutFiles) -> Mapping[str, str]:
    """
    Read the flat part of config.yaml: `key: value` lines at its left margin.

    Raises:
        NotFoundError: There is none.
    """
    try:
        text = read_text(files, CONFIG)
    except NotFoundError:
        raise NotFoundError(
            f"there is no '{files.where}{CONFIG}': give the prefix of a folder in circuit-tracer's layout, with its "
            "config.yaml.",
            field="prefix",
        ) from None
    config = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon and name and not name[0].isspace() and name[0] not in "#-":
            config[name.strip().strip("'\"")] = re.sub(r"\s#.*", "", value).strip().strip("'\"")
    return config


def _check_kind(kind: str, files: LayoutFiles) -> bool:
    """Tell whether there are skips."""
    if kind not in (KIND, _SKIP_KIND):
        raise FailedPreconditionError(
            f"'{files.where}{CONFIG}' says model_kind {kind[:40]!r}, where {KIND} is expected: a transcoder_set is "
            "imported with format circuit-tracer, others are not.",
            field="prefix",
        )
    return kind == _SKIP_KIND


def _counting(config: Mapping[str, str], files: LayoutFiles) -> tuple[int, bool]:
    """Read how many features are kept, 0 where thresholds decide, and whether over all layers together."""
    count, over = config.get("top_k"), config.get("top_k_over", _OVER[False])
    if count is None:
        return 0, False
    if not _COUNT.fullmatch(count) or over not in _OVER.values():
        raise DataLossError(
            f"'{files.where}{CONFIG}' says top_k {count[:40]!r} over {over[:40]!r}: expected a whole number above 0, "
            f"over {' or '.join(_OVER.values())}."
        )
    return int(count), over == _OVER[True]
