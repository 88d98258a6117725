"""
A pass for the streams of a harvest, over a model's parts: two hooks of every layer and nothing else.

Legend: B sequences, P positions, D d_model.
"""

from collections.abc import Callable

from torch import Tensor

from weft_activations.adapters.torch_blocks import Parts

__all__ = ["run_streams"]


def run_streams(
    parts: Parts, tokens_BP: Tensor, input_hook: str, output_hook: str, write: Callable[[int, int, Tensor], None]
) -> None:
    """
    Run a pass for two hooks of every layer: no patterns, no final norm, no unembedding.

    Args:
        parts: The model.
        tokens_BP: Token ids.
        input_hook: The first hook, without the layer.
        output_hook: The second.
        write: Takes 0 or 1 for the hook, a layer, and what lies there, [B, P, D].

    Raises:
        KeyError: A hook that a harvest does not take.
    """
    x_BPD = parts.embed(tokens_BP)
    for layer, block in enumerate(parts.blocks):
        attn_out_BPD = block.attend(block.ln1(x_BPD), block.mask(tokens_BP.shape[1]))
        x_BPD = x_BPD + attn_out_BPD
        mlp_in_BPD = block.ln2(x_BPD)
        mlp_out_BPD = block.mlp(mlp_in_BPD)
        found = {"mlp_in": mlp_in_BPD, "resid_mid": x_BPD, "mlp_out": mlp_out_BPD}
        write(0, layer, found[input_hook])
        write(1, layer, found[output_hook])
        x_BPD = x_BPD + mlp_out_BPD
