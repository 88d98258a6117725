"""
Makes a transcoder that reads before a norm's weight and bias read after them, as the MLP does.

    norm.safetensors            weight_{i} [D], optional bias_{i} [D] of the norm in front of layer i's MLP

With x = z * weight + bias for the input z that the transcoder was made for: W_enc z = (W_enc / weight) (x - bias), so
W_enc /= weight and b_enc -= W_enc bias, with the new W_enc; a linear skip and b_dec alike.
Gemma's norms multiply by 1 + weight: write that sum into the file.
Shapes: F features, D d_model.
"""

from dataclasses import replace

import numpy as np

from weft_clt.formats.files import LayoutFiles
from weft_clt.formats.representation import MLP_NORMALIZED, Array, Encoder, TranscoderFacts, TranscoderSource
from weft_clt.formats.safetensors_reading import SafetensorsFile
from weft_common.errors import DataLossError, FailedPreconditionError

__all__ = ["NORM_FILE", "NormFolded"]

NORM_FILE = "norm.safetensors"


class NormFolded:
    """
    A transcoder that reads `mlp_in`.

    Args:
        source: One that reads `mlp_normalized`.
        files: Where `norm.safetensors` lies.

    Raises:
        FailedPreconditionError: There is no such file.
        DataLossError: A layer's weight is missing, of another shape, or 0 somewhere.
    """

    def __init__(self, source: TranscoderSource, files: LayoutFiles) -> None:
        facts = source.facts
        if NORM_FILE not in files.sizes():
            raise FailedPreconditionError(
                f"the transcoder reads {MLP_NORMALIZED} (ln2.hook_normalized), which weft does not capture: put a "
                f"{NORM_FILE} with weight_0, weight_1, ... of the norms before the MLPs beside its files, or give an "
                "input_hook if it reads something else.",
                field="prefix",
            )
        self._source = source
        self._file = SafetensorsFile(files, NORM_FILE)
        self._file.expect({f"weight_{layer}": (facts.d_model,) for layer in range(facts.num_layers)})
        biases = {name: (facts.d_model,) for name in self._file.shapes if name.startswith("bias_")}
        self._file.expect(biases)
        self._facts = replace(facts, input_hook="mlp_in")

    @property
    def facts(self) -> TranscoderFacts:
        """The same but for the input."""
        return self._facts

    def encoder(self, layer: int) -> Encoder:
        """Read one layer's encoder."""
        encoder, weight_D = self._source.encoder(layer), self._weight(layer)
        w_enc_FD = encoder.w_enc_FD / weight_D
        b_enc_F: Array = encoder.b_enc_F.astype(np.float64)
        if f"bias_{layer}" in self._file.shapes:
            b_enc_F = b_enc_F - w_enc_FD @ self._file.read(f"bias_{layer}").astype(np.float64)
        w_skip_DD = None if encoder.w_skip_DD is None else encoder.w_skip_DD / weight_D
        return replace(encoder, w_enc_FD=w_enc_FD, b_enc_F=b_enc_F, w_skip_DD=w_skip_DD)

    def decoder(self, layer: int, target: int, features: slice) -> Array:
        """Unchanged."""
        return self._source.decoder(layer, target, features)

    def output_bias(self, target: int) -> Array:
        """Read a layer's output bias, less what a skip gives for the norm's bias."""
        bias_D = self._source.output_bias(target)
        if self._facts.has_skip and f"bias_{target}" in self._file.shapes:
            w_skip_DD = self._source.encoder(target).w_skip_DD
            assert w_skip_DD is not None
            norm_bias_D = self._file.read(f"bias_{target}").astype(np.float64)
            bias_D = bias_D - (w_skip_DD / self._weight(target)) @ norm_bias_D
        return bias_D

    def _weight(self, layer: int) -> Array:
        weight_D: Array = self._file.read(f"weight_{layer}").astype(np.float64)
        if not weight_D.all():
            raise DataLossError(f"weight_{layer} of {self._file.key!r} is 0 somewhere: its inputs cannot be recovered.")
        return weight_D
