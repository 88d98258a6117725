"""GPT-2: learned positions, queries, keys and values of one product."""

from typing import Any

from weft_activations.adapters.places import FusedHeads, Located, Norm, Place, Site, final_places, layer_places

__all__ = ["locate_gpt2"]


def locate_gpt2(model: Any) -> Located:
    """Find a GPT-2's components."""
    body, num_heads = model.transformer, model.config.n_head
    places: dict[str, Place] = {
        "tok_embed": Site(body.wte, is_input=False),
        "pos_embed": Site(body.wpe, is_input=False),
        "embed": Site(body.h[0], is_input=True),
    }
    for layer, block in enumerate(body.h):
        places |= layer_places(
            layer,
            block=block,
            ln1=Norm(block.ln_1),
            heads={
                name: Site(block.attn.c_attn, is_input=False, view=FusedHeads(num_heads, index, by_head=False))
                for index, name in enumerate("qkv")
            },
            attention=block.attn,
            rotated=False,
            projection=block.attn.c_proj,
            num_heads=num_heads,
            attn_out=block.attn,
            ln2=Norm(block.ln_2),
            mlp=block.mlp,
            pre=block.mlp.c_fc,
            down=block.mlp.c_proj,
            mlp_out=block.mlp,
        )
    places |= final_places(Norm(body.ln_f))
    return Located(model, places)
