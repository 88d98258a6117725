"""Whisper: a stack that reads a spectrogram, one that reads tokens, and cross attention from this to that."""

from typing import Any

from torch import Tensor

from weft_activations.adapters.places import (
    Heads,
    Located,
    Norm,
    OpenAttention,
    Place,
    Result,
    Site,
    Transposed,
    final_places,
    layer_places,
)

__all__ = ["locate_whisper"]


def locate_whisper(model: Any) -> Located:
    """Find the components of both stacks."""
    encoder, decoder = model.model.encoder, model.model.decoder
    places: dict[str, Place] = {
        "encoder.features": Site(encoder.conv1, is_input=True, view=Transposed()),
        "encoder.embed": Site(encoder.layers[0], is_input=True),
        **_stack("encoder", encoder, model.config.encoder_attention_heads),
        "decoder.tok_embed": Site(decoder.embed_tokens, is_input=False),
        "decoder.pos_embed": Site(decoder.embed_positions, is_input=False),
        "decoder.embed": Site(decoder.layers[0], is_input=True),
        **_stack("decoder", decoder, model.config.decoder_attention_heads),
    }
    for layer, block in enumerate(decoder.layers):
        cross = _cross_places(block, model.config.decoder_attention_heads)
        places |= {f"decoder.layers.{layer}.{name}": place for name, place in cross.items()}
    return Located(model, places, call=_call)


def _stack(name: str, body: Any, num_heads: int) -> dict[str, Place]:
    places: dict[str, Place] = {}
    for layer, block in enumerate(body.layers):
        places |= layer_places(
            layer,
            block=block,
            ln1=Norm(block.self_attn_layer_norm),
            heads=_heads(block.self_attn, num_heads),
            attention=block.self_attn,
            rotated=False,
            projection=block.self_attn.out_proj,
            num_heads=num_heads,
            attn_out=block.self_attn,
            ln2=Norm(block.final_layer_norm),
            mlp=block.fc1,
            pre=block.fc1,
            down=block.fc2,
            mlp_out=block.fc2,
        )
    return {f"{name}.{each}": place for each, place in (places | final_places(Norm(body.layer_norm))).items()}


def _cross_places(block: Any, num_heads: int) -> dict[str, Place]:
    attention, norm = block.encoder_attn, block.encoder_attn_layer_norm
    return {
        "resid_mid": Site(norm, is_input=True, in_place=True),
        "ln_cross.scale": Norm(norm),
        "ln_cross.normed": Site(norm, is_input=False),
        **{f"cross.{name}": site for name, site in _heads(attention, num_heads).items()},
        "cross.scores": OpenAttention(attention, "scores"),
        "cross.pattern": OpenAttention(attention, "pattern"),
        "cross.z": Site(attention.out_proj, is_input=True, view=Heads(num_heads)),
        "cross.result": Result(attention.out_proj, num_heads),
        "cross_out": Site(attention, is_input=False),
        "resid_cross": Site(block.final_layer_norm, is_input=True, in_place=True),
    }


def _heads(attention: Any, num_heads: int) -> dict[str, Site]:
    return {
        name: Site(getattr(attention, f"{name}_proj"), is_input=False, view=Heads(num_heads))
        for name in ("q", "k", "v")
    }


def _call(model: Any, tokens_BP: Tensor, all_logits: bool, cache: Any, features_BNS: Tensor | None) -> Tensor | None:
    assert features_BNS is not None
    logits_BPV: Tensor = model(
        features_BNS.to(model.dtype), decoder_input_ids=tokens_BP, use_cache=False, past_key_values=cache
    ).logits
    return logits_BPV
