"""
Where training starts.

Sources: Ameisen et al. 2025 (JumpReLU), EleutherAI/clt-training at cf9821f (TopK). Deviations: TopK's encoder rows have
unit length times `sqrt(d)` over the inputs' norm, that is 1.
Random numbers depend on the seed, the layer and the feature only, never on the number of ranks or the device: they are
drawn on the host.
Shapes: L layers, D d_model, F features of a layer over all ranks, S features and C columns of this rank, T tokens.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weft_clt.config import Activation, FeatureConfig, ParameterType
from weft_clt.mesh import Mesh
from weft_clt.normalization import Normalization
from weft_clt.parameters import Parameters, Share
from weft_common.errors import ShapeError

__all__ = ["calibrate_biases", "initial_parameters"]

TARGET_ACTIVE = 10_000
"""JumpReLU starts with about this many active features a token, at most half of all."""

_ENCODER, _DECODER = 0, 1


def _uniform(seed: int, kind: int, layer: int, other: int, bound: float, shape: tuple[int, int]) -> NDArray[np.float64]:
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, kind, layer, other])))
    return random.uniform(-bound, bound, shape)


def initial_parameters(
    share: Share,
    features: FeatureConfig,
    normalization: Normalization,
    *,
    seed: int,
    dtype: torch.dtype,
    weights: ParameterType = ParameterType.FLOAT32,
    device: torch.device | None = None,
) -> Parameters:
    """
    Make one rank's share of the start; weights of bfloat16 are those of the other types, rounded to nearest.

    TopK and BatchTopK: the encoder uniform, the decoder 0, its bias the mean output, the encoder's bias such that the
    mean input gives 0. Joint TopK: the same, but for the decoder, whose norms it ranks by: as for JumpReLU.
    JumpReLU and ReLU: encoder U(+-1/sqrt(F)), decoder U(+-1/sqrt(L d)), L the layers that a feature may write to, the
    decoder's bias the mean output; the encoder's bias is left to `calibrate_biases`.
    The linear skip starts at 0, and BatchTopK's running threshold too.
    """
    shape = share.shape
    num_layers, num_features, d_model = shape.num_layers, shape.num_features, shape.d_model
    if normalization.input_mean_LD.shape != (num_layers, d_model):
        raise ShapeError(
            f"The normalisation is of shape {normalization.input_mean_LD.shape}; "
            f"the transcoder needs {(num_layers, d_model)}."
        )
    activation = features.activation
    dense = not activation.counts
    params = Parameters.zeros(
        share,
        thresholds=activation.has_thresholds,
        dtype=dtype,
        skip=features.linear_skip,
        weights=weights,
        device=device,
    )
    params.b_dec_LC.copy_(torch.from_numpy(normalization.output_mean_LD[:, share.columns]))
    for layer in range(num_layers):
        bound = num_features**-0.5 if dense else (3 / d_model) ** 0.5
        w_enc_FD = _uniform(seed, _ENCODER, layer, 0, bound, (num_features, d_model))
        w_enc_SD = w_enc_FD[share.features]
        params.w_enc_LSD[layer].copy_(torch.from_numpy(w_enc_SD))
        if not dense:
            params.b_enc_LS[layer].copy_(torch.from_numpy(-w_enc_SD @ normalization.input_mean_LD[layer]))
        if not dense and activation is not Activation.JOINT_TOP_K:
            continue
        for target in shape.targets(layer):
            bound = (shape.span * d_model) ** -0.5
            w_dec_FD = _uniform(seed, _DECODER, layer, target, bound, (num_features, d_model))
            params.decoder(layer, target).copy_(torch.from_numpy(w_dec_FD[:, share.columns]))
    if params.threshold_LS is not None and activation is Activation.JUMP_RELU:
        params.threshold_LS.fill_(features.threshold_init)
    return params


def calibrate_biases(params: Parameters, inputs_LTD: Tensor, mesh: Mesh) -> None:
    """
    Set the encoder biases of JumpReLU or ReLU so that each feature fires on the wanted share of these tokens.

    Args:
        inputs_LTD: The group's normalised inputs of the first step.
    Collectives: one gather a layer on the data axis.
    """
    rate = min(TARGET_ACTIVE / params.share.shape.num_features, 0.5)
    for layer in range(inputs_LTD.shape[0]):
        all_inputs_TD = mesh.data.gather(inputs_LTD[layer].contiguous()).flatten(0, 1)
        # In a fixed order of tokens, whatever the mesh: quantiles do not depend on it.
        preact_TS = all_inputs_TD @ params.encoder(layer).T
        quantile_S = torch.quantile(preact_TS, 1 - rate, dim=0)
        torch.neg(quantile_S, out=params.b_enc_LS[layer])
        if params.threshold_LS is not None:
            params.b_enc_LS[layer] += params.threshold_LS[layer]
