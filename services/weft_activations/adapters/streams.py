"""
A pass for the streams of a harvest, over a model's parts: some hooks of every layer and nothing else.

Legend: B sequences, P positions, D d_model.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from weft_activations.adapters.torch_blocks import Parts

__all__ = ["run_streams"]


def run_streams(
    parts: Parts, tokens_BP: Tensor, hooks: Sequence[str], write: Callable[[str, int, Tensor], None]
) -> None:
    """
    Run a pass for some hooks of every layer: no patterns, no final norm, no unembedding.

    Args:
        parts: The model.
        tokens_BP: Token ids.
        hooks: Without the layer.
        write: Takes a hook, a layer, and what lies there, [B, P, D].

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
        for hook in hooks:
            write(hook, layer, found[hook])
        x_BPD = x_BPD + mlp_out_BPD
