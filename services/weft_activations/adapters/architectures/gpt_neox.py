"""GPT-NeoX: attention and MLP read the same stream, unless the configuration says otherwise."""

from typing import Any

from weft_activations.adapters.places import FusedHeads, Located, Norm, Place, Site, final_places, layer_places

__all__ = ["locate_gpt_neox"]


def locate_gpt_neox(model: Any) -> Located:
    """Find a GPT-NeoX's components."""
    body, num_heads = model.gpt_neox, model.config.num_attention_heads
    places: dict[str, Place] = {"embed": Site(body.layers[0], is_input=True)}
    for layer, block in enumerate(body.layers):
        attention, mlp = block.attention, block.mlp
        places |= layer_places(
            layer,
            block=block,
            ln1=Norm(block.input_layernorm),
            heads={
                name: Site(attention.query_key_value, is_input=False, view=FusedHeads(num_heads, index, by_head=True))
                for index, name in enumerate("qkv")
            },
            attention=attention,
            rotated=True,
            projection=attention.dense,
            num_heads=num_heads,
            attn_out=attention,
            ln2=Norm(block.post_attention_layernorm),
            mlp=mlp,
            pre=mlp.dense_h_to_4h,
            down=mlp.dense_4h_to_h,
            mlp_out=mlp,
            parallel=model.config.use_parallel_residual,
        )
    places |= final_places(Norm(body.final_layer_norm))
    return Located(model, places)
