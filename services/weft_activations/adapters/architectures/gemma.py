"""Gemma 2 and 3: what attention and MLP return is normed before it is added; norms multiply by 1 + weight."""

from typing import Any

from weft_activations.adapters.places import Heads, Located, Norm, Place, Site, final_places, layer_places

__all__ = ["locate_gemma"]


def locate_gemma(model: Any) -> Located:
    """Find a Gemma's components."""
    body, config = model.model, model.config
    heads_of = {"q": config.num_attention_heads, "k": config.num_key_value_heads, "v": config.num_key_value_heads}
    places: dict[str, Place] = {"embed": Site(body.layers[0], is_input=True)}
    for layer, block in enumerate(body.layers):
        attention, mlp = block.self_attn, block.mlp
        places |= layer_places(
            layer,
            block=block,
            ln1=Norm(block.input_layernorm, 1.0),
            heads={
                name: Site(getattr(attention, f"{name}_proj"), is_input=False, view=Heads(count))
                for name, count in heads_of.items()
            },
            attention=attention,
            rotated=True,
            projection=attention.o_proj,
            num_heads=config.num_attention_heads,
            ln1_post=Norm(block.post_attention_layernorm, 1.0),
            attn_out=block.post_attention_layernorm,
            ln2=Norm(block.pre_feedforward_layernorm, 1.0),
            mlp=mlp,
            pre=mlp.gate_proj,
            pre_linear=mlp.up_proj,
            down=mlp.down_proj,
            ln2_post=Norm(block.post_feedforward_layernorm, 1.0),
            mlp_out=block.post_feedforward_layernorm,
        )
    places |= final_places(Norm(body.norm, 1.0))
    if config.final_logit_softcapping is not None:
        places["logits_uncapped"] = Site(model.lm_head, is_input=False)
    return Located(model, places, always_open=not model._supports_sdpa)
