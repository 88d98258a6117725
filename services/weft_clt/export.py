"""
A checkpoint as a transcoder in the model's own units, to be written in any layout (`weft_clt.formats`).

The normalisation is folded in: W_enc *= s_in[i]; W_dec to k /= s_out[k]; b_dec /= s_out; W_skip *= s_in / s_out; b_enc
and thresholds stay.
What counts (TopK, joint TopK) says so, and has thresholds beside it for tools that know nothing else
(`weft_clt.conversion`).
Shapes: L layers, F features, D d_model.
"""

from __future__ import annotations

from torch import Tensor

from weft_clt.config import Activation, FeatureConfig
from weft_clt.conversion import decoder_norms
from weft_clt.formats.representation import Array, Encoder, TranscoderFacts
from weft_clt.normalization import Normalization
from weft_clt.parameters import Parameters
from weft_common.errors import ShapeError

__all__ = ["TrainedTranscoder"]


class TrainedTranscoder:
    """
    The parameters of a checkpoint, as `weft_clt.formats.representation.TranscoderSource`; weights are scaled when read.

    Args:
        params: Of one rank, that is whole, with thresholds.
        normalization: In whose units it was trained.
        input_hook: What it reads.
        output_hook: What it predicts.
        features: How features are selected, where they are counted; by thresholds alone without it.

    Raises:
        ShapeError: Ranks or thresholds are missing.
    """

    def __init__(
        self,
        params: Parameters,
        normalization: Normalization,
        input_hook: str = "mlp_in",
        output_hook: str = "mlp_out",
        features: FeatureConfig | None = None,
    ) -> None:
        if params.share.size != 1 or params.threshold_LS is None:
            raise ShapeError("An export needs the parameters of all ranks joined, and thresholds.")
        shape = params.share.shape
        self._params, self._threshold_LF, self._normalization = params, params.threshold_LS, normalization
        kind = features.activation if features is not None else Activation.JUMP_RELU
        over_layers = kind is Activation.JOINT_TOP_K
        # In the units of training, in which they ranked; activations are the same in both.
        self._rank_norm_LF = decoder_norms(params) if over_layers else None
        self._facts = TranscoderFacts(
            num_layers=shape.num_layers,
            num_features=shape.num_features,
            d_model=shape.d_model,
            input_hook=input_hook,
            output_hook=output_hook,
            has_thresholds=True,
            window=shape.span,
            has_skip=params.w_skip_LCD is not None,
            top_k=features.top_k if features is not None and kind in (Activation.TOP_K, Activation.JOINT_TOP_K) else 0,
            over_layers=over_layers,
        )

    @property
    def facts(self) -> TranscoderFacts:
        """What it is."""
        return self._facts

    def encoder(self, layer: int) -> Encoder:
        """Scale one layer's encoder."""
        return Encoder(
            w_enc_FD=self._params.w_enc_LSD[layer].float().numpy() * self._normalization.input_scale_L[layer],
            b_enc_F=self._params.b_enc_LS[layer].float().numpy(),
            threshold_F=self._threshold_LF[layer].float().numpy(),
            w_skip_DD=None if self._params.w_skip_LCD is None else self._skip(self._params.w_skip_LCD[layer], layer),
            rank_norm_F=None if self._rank_norm_LF is None else self._rank_norm_LF[layer].float().numpy(),
        )

    def _skip(self, w_skip_DD: Tensor, layer: int) -> Array:
        scale = self._normalization.input_scale_L[layer] / self._normalization.output_scale_L[layer]
        scaled_DD: Array = w_skip_DD.float().numpy() * scale
        return scaled_DD

    def decoder(self, layer: int, target: int, features: slice) -> Array:
        """Scale what some features write to one layer."""
        rows_fD = self._params.decoder(layer, target)[features].float().numpy()
        scaled_fD: Array = rows_fD / self._normalization.output_scale_L[target]
        return scaled_fD

    def output_bias(self, target: int) -> Array:
        """Scale a layer's output bias."""
        bias_D: Array = self._params.b_dec_LC[target].float().numpy() / self._normalization.output_scale_L[target]
        return bias_D
