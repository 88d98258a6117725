"""
GemmaScope's layout of per-layer transcoders; read only.

    .../layer_{i}/.../params.npz    W_enc [D, F]  b_enc [F]  W_dec [F, D]  b_dec [D]  threshold [F]

JumpReLU: relu(h) * 1[h > threshold]. It reads ln2.hook_normalized, `mlp_normalized` here, and predicts the MLP's
contribution to the residual stream; nothing in the files says so.

Source: SAELens 6.54, `loading/pretrained_sae_loaders.py`; circuit-tracer 0.5.0,
`transcoder/single_layer_transcoder.py`.
Shapes: F features, D d_model.
"""

import re

import numpy as np

from weft_clt.formats.files import LayoutFiles
from weft_clt.formats.numpy_archives import NumpyArchive
from weft_clt.formats.representation import MAX_LAYERS, MLP_NORMALIZED, Array, Encoder, TranscoderFacts
from weft_clt.formats.safetensors_reading import table
from weft_common.errors import DataLossError, FailedPreconditionError, NotFoundError

__all__ = ["GemmaScopeFiles"]

PARAMETERS = "params.npz"
_LAYER = re.compile(r"(?:^|[/_])layer_(0|[1-9][0-9]{0,3})(?=[/_]|$)")


class GemmaScopeFiles:
    """
    One archive a layer, of all layers of a model.

    Args:
        files: Where they lie.

    Raises:
        NotFoundError: There is no params.npz.
        FailedPreconditionError: A layer has several, or they differ in shape.
        DataLossError: A layer is missing, or an archive is broken.
    """

    def __init__(self, files: LayoutFiles) -> None:
        names = sorted(name for name in files.sizes() if f"/{name}".endswith(f"/{PARAMETERS}"))
        if not names:
            raise NotFoundError(f"there is no '{PARAMETERS}' below '{files.where}'.", field="prefix")
        by_layer: dict[int, str] = {}
        for name in names:
            matches = _LAYER.findall(name)
            if not matches and len(names) > 1:
                raise DataLossError(f"'{files.where}{name}' has no layer_N in its path, so its layer is unknown.")
            layer = int(matches[-1]) if matches else 0
            if layer in by_layer:
                raise FailedPreconditionError(
                    f"'{by_layer[layer]}' and '{name}' are both of layer {layer}: give a folder with one width and "
                    "sparsity a layer.",
                    field="prefix",
                )
            by_layer[layer] = name
        if sorted(by_layer) != list(range(len(names))) or len(names) > MAX_LAYERS:
            raise DataLossError(
                f"{files.where} has transcoders of layers {sorted(by_layer)[:20]}: expected 0, 1, 2, ... of all layers "
                f"of the model, at most {MAX_LAYERS}."
            )
        self._archives = [NumpyArchive(files, by_layer[layer]) for layer in range(len(names))]
        shape = self._archives[0].shapes.get("W_enc", ())
        if len(shape) != 2 or 0 in shape:
            raise DataLossError(
                f"{self._archives[0].key!r} holds {table(self._archives[0].shapes)}: "
                "expected W_enc [d_model, features]."
            )
        d_model, num_features = shape
        expected = {
            "W_enc": (d_model, num_features),
            "b_enc": (num_features,),
            "W_dec": (num_features, d_model),
            "b_dec": (d_model,),
            "threshold": (num_features,),
        }
        for archive in self._archives:
            if {name: archive.shapes.get(name) for name in expected} != expected:
                raise DataLossError(f"{archive.key!r} holds {table(archive.shapes)}: expected {table(expected)}.")
        self._facts = TranscoderFacts(
            num_layers=len(names),
            num_features=num_features,
            d_model=d_model,
            input_hook=MLP_NORMALIZED,
            output_hook="mlp_out",
            has_thresholds=True,
            window=1,
        )
        self._decoder: tuple[int, Array] | None = None

    @property
    def facts(self) -> TranscoderFacts:
        """What the headers say."""
        return self._facts

    def encoder(self, layer: int) -> Encoder:
        """Read one layer's encoder; a layer's decoder that was kept goes."""
        archive, self._decoder = self._archives[layer], None
        return Encoder(
            w_enc_FD=archive.read("W_enc").T,
            b_enc_F=archive.read("b_enc"),
            threshold_F=np.maximum(archive.read("threshold"), 0),
        )

    def decoder(self, layer: int, target: int, features: slice) -> Array:
        """Read what some features write to their own layer; an archive has no ranges, so a layer is kept."""
        if layer != target:
            raise ValueError(f"a per-layer transcoder of layer {layer} has no decoder to {target}")
        if self._decoder is None or self._decoder[0] != layer:
            self._decoder = None
            self._decoder = (layer, self._archives[layer].read("W_dec"))
        return self._decoder[1][features]

    def output_bias(self, target: int) -> Array:
        """Read a layer's output bias."""
        return self._archives[target].read("b_dec")
