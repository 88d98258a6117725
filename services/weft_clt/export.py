"""
A checkpoint as a transcoder that other tools read: circuit-tracer's layout.

    config.yaml                 model_name, model_kind, feature_input_hook, feature_output_hook
    W_enc_{i}.safetensors       W_enc_{i} [F, D], b_enc_{i} [F], b_dec_{i} [D], threshold_{i} [F]
    W_dec_{i}.safetensors       W_dec_{i} [F, L-i, D], axis 1 the targets i to L-1; zeros where features write to fewer

The normalisation is folded in: W_enc *= s_in[i]; W_dec to k /= s_out[k]; b_dec /= s_out; b_enc and thresholds stay.
What counts becomes JumpReLU first (`weft_clt.conversion`).
Shapes: L layers, F features, D d_model, P pairs of layers (`weft_clt.parameters`).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from safetensors.torch import save_file

from weft_clt.normalization import Normalization
from weft_clt.parameters import Parameters
from weft_common.errors import ShapeError

__all__ = ["config_yaml", "export_transcoder"]

_INPUT_HOOKS = {"mlp_in": "mlp.hook_in", "resid_mid": "hook_resid_mid"}
_OUTPUT_HOOKS = {"mlp_out": "hook_mlp_out"}


def config_yaml(model: str, input_hook: str, output_hook: str) -> bytes:
    """
    Write config.yaml.

    Raises:
        ShapeError: circuit-tracer has no name for a hook.
    """
    if input_hook not in _INPUT_HOOKS or output_hook not in _OUTPUT_HOOKS:
        raise ShapeError(
            f"circuit-tracer's layout has no names for {input_hook} to {output_hook}; "
            f"train on {' or '.join(_INPUT_HOOKS)} to {' or '.join(_OUTPUT_HOOKS)}."
        )
    lines = [
        f'model_name: "{model}"',
        "model_kind: cross_layer_transcoder",
        f"feature_input_hook: {_INPUT_HOOKS[input_hook]}",
        f"feature_output_hook: {_OUTPUT_HOOKS[output_hook]}",
    ]
    return ("\n".join(lines) + "\n").encode()


def export_transcoder(params: Parameters, normalization: Normalization, folder: str) -> Iterator[str]:
    """
    Write the weight files into a folder, one layer in memory at a time, and yield each file's name once it is whole.

    Args:
        params: Of one rank, that is whole, with thresholds.
    """
    if params.share.size != 1 or params.threshold_LS is None:
        raise ShapeError("An export needs the parameters of all ranks joined, and thresholds.")
    if params.w_skip_LCD is not None:
        raise ShapeError("circuit-tracer's layout has no place for a linear skip; train without linear_skip to export.")
    num_layers = params.share.shape.num_layers
    scale_in_L = torch.from_numpy(normalization.input_scale_L)
    scale_out_L = torch.from_numpy(normalization.output_scale_L)
    for layer in range(num_layers):
        encoder = {
            f"W_enc_{layer}": (params.w_enc_LSD[layer].double() * scale_in_L[layer]).float(),
            f"b_enc_{layer}": params.b_enc_LS[layer].float().clone(),
            f"b_dec_{layer}": (params.b_dec_LC[layer].double() / scale_out_L[layer]).float(),
            f"threshold_{layer}": params.threshold_LS[layer].float().clone(),
        }
        save_file(encoder, f"{folder}/W_enc_{layer}.safetensors")
        yield f"W_enc_{layer}.safetensors"
        decoders = [
            params.decoder(layer, target) / scale_out_L[target].to(params.w_dec_PFC.dtype)
            if target in params.share.shape.targets(layer)
            else params.w_dec_PFC.new_zeros(params.share.shape.num_features, params.share.shape.d_model)
            for target in range(layer, num_layers)
        ]
        save_file({f"W_dec_{layer}": torch.stack(decoders, 1).float()}, f"{folder}/W_dec_{layer}.safetensors")
        yield f"W_dec_{layer}.safetensors"
