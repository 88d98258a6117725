"""
circuit-tracer's layout of per-layer transcoders; read only.

    config.yaml             model_kind: transcoder_set, feature_input_hook, feature_output_hook
    layer_{i}.safetensors   W_enc [F, D]  b_enc [F]  W_dec [F, D]  b_dec [D]
                            activation_function.threshold [F] for JumpReLU   W_skip [D, D] (out, in) for a linear skip

JumpReLU is h * 1[h > threshold], without it ReLU. A config.yaml whose `transcoders` lie elsewhere has no files here.
Source: circuit-tracer 0.5.0, `transcoder/single_layer_transcoder.py`, `utils/hf_utils.py`.
Shapes: F features, D d_model.
"""

import re

from weft_clt.formats.circuit_tracer import CONFIG, CircuitTracerFiles, read_config
from weft_clt.formats.files import LayoutFiles
from weft_clt.formats.representation import (
    MAX_LAYERS,
    Array,
    Encoder,
    TranscoderFacts,
    TranscoderSource,
    hook_of_layer,
)
from weft_clt.formats.safetensors_reading import SafetensorsFile
from weft_common.errors import DataLossError

__all__ = ["CircuitTracerSetFiles", "open_circuit_tracer"]

_FILE = re.compile(r"layer_(0|[1-9][0-9]{0,3})\.safetensors")
_THRESHOLD = "activation_function.threshold"


def open_circuit_tracer(files: LayoutFiles) -> TranscoderSource:
    """Open what circuit-tracer keeps, a cross-layer transcoder or a set of per-layer ones."""
    is_set = read_config(files).get("model_kind") == "transcoder_set"
    return CircuitTracerSetFiles(files) if is_set else CircuitTracerFiles(files)


class CircuitTracerSetFiles:
    """
    One file a layer, of all layers of a model.

    Args:
        files: Where they lie.

    Raises:
        FailedPreconditionError: They read a hook that weft does not have.
        DataLossError: A layer is missing, or a file is not what the layout says.
    """

    def __init__(self, files: LayoutFiles) -> None:
        config = read_config(files)
        layers = sorted(int(match[1]) for name in files.sizes() if (match := _FILE.fullmatch(name)))
        if not layers or layers != list(range(len(layers))) or len(layers) > MAX_LAYERS:
            raise DataLossError(
                f"{files.where}{CONFIG} is of a transcoder_set, and there are layer_N.safetensors of layers "
                f"{layers[:20]}: expected 0, 1, 2, ... of all layers of the model, at most {MAX_LAYERS}, beside it."
            )
        self._layers = [SafetensorsFile(files, f"layer_{layer}.safetensors") for layer in layers]
        first = self._layers[0]
        shape = first.shapes.get("W_enc", ())
        if len(shape) != 2 or 0 in shape:
            raise DataLossError(f"{first.key!r} has W_enc of shape {list(shape)}: expected [features, d_model].")
        num_features, d_model = shape
        expected: dict[str, tuple[int, ...]] = {
            "W_enc": shape,
            "b_enc": (num_features,),
            "W_dec": shape,
            "b_dec": (d_model,),
        }
        has_thresholds, has_skip = _THRESHOLD in first.shapes, "W_skip" in first.shapes
        if has_thresholds:
            expected[_THRESHOLD] = (num_features,)
        if has_skip:
            expected["W_skip"] = (d_model, d_model)
        for file in self._layers:
            file.expect(expected, exactly=True)
        self._facts = TranscoderFacts(
            num_layers=len(layers),
            num_features=num_features,
            d_model=d_model,
            input_hook=hook_of_layer(config.get("feature_input_hook", "")),
            output_hook=hook_of_layer(config.get("feature_output_hook", ""), output=True),
            has_thresholds=has_thresholds,
            window=1,
            has_skip=has_skip,
        )

    @property
    def facts(self) -> TranscoderFacts:
        """What configuration and headers say."""
        return self._facts

    def encoder(self, layer: int) -> Encoder:
        """Read one layer's encoder and skip."""
        file = self._layers[layer]
        return Encoder(
            w_enc_FD=file.read("W_enc"),
            b_enc_F=file.read("b_enc"),
            threshold_F=file.read(_THRESHOLD) if self._facts.has_thresholds else None,
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
