"""Llama and the models shaped like it: Mistral, Qwen 2 and 3."""

from typing import Any

from weft_activations.adapters.places import Heads, Located, Norm, Place, Site, final_places, layer_places

__all__ = ["locate_llama"]


def locate_llama(model: Any) -> Located:
    """Find a Llama-shaped model's components."""
    body, config = model.model, model.config
    heads_of = {"q": config.num_attention_heads, "k": config.num_key_value_heads, "v": config.num_key_value_heads}
    places: dict[str, Place] = {"embed": Site(body.layers[0], is_input=True)}
    for layer, block in enumerate(body.layers):
        attention, mlp = block.self_attn, block.mlp
        places |= layer_places(
            layer,
            block=block,
            ln1=Norm(block.input_layernorm),
            heads={
                name: Site(getattr(attention, f"{name}_proj"), is_input=False, view=Heads(count))
                for name, count in heads_of.items()
            },
            attention=attention,
            rotated=True,
            projection=attention.o_proj,
            num_heads=config.num_attention_heads,
            attn_out=attention,
            ln2=Norm(block.post_attention_layernorm),
            mlp=mlp,
            pre=mlp.gate_proj,
            pre_linear=mlp.up_proj,
            down=mlp.down_proj,
            mlp_out=mlp,
        )
    places |= final_places(Norm(body.norm))
    return Located(model, places)
