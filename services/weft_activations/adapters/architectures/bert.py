"""BERT and RoBERTa: attention in both directions, and a norm behind each sum."""

from typing import Any

from torch import Tensor

from weft_activations.adapters.places import Heads, Located, Norm, OpenAttention, Place, Result, Site

__all__ = ["locate_bert"]

_PROJECTIONS = {"q": "query", "k": "key", "v": "value"}


def locate_bert(model: Any) -> Located:
    """Find an encoder's components, with or without the head that predicts masked tokens."""
    body = model.base_model
    embeddings, blocks = body.embeddings, body.encoder.layer
    places: dict[str, Place] = {
        "tok_embed": Site(embeddings.word_embeddings, is_input=False),
        "pos_embed": Site(embeddings.position_embeddings, is_input=False),
        "type_embed": Site(embeddings.token_type_embeddings, is_input=False),
        "ln_embed.scale": Norm(embeddings.LayerNorm),
        "embed": Site(blocks[0], is_input=True),
    }
    for layer, block in enumerate(blocks):
        at_layer = _layer_places(block, model.config.num_attention_heads)
        places |= {f"layers.{layer}.{name}": place for name, place in at_layer.items()}
    places["resid_final"] = Site(blocks[-1].output.LayerNorm, is_input=False)
    if getattr(body, "pooler", None) is not None:
        places["pooled"] = Site(body.pooler, is_input=False)
    if model is not body:
        places |= _head_places(model)
    return Located(model, places, call=_call)


def _layer_places(block: Any, num_heads: int) -> dict[str, Place]:
    attention, first, second = block.attention.self, block.attention.output, block.output
    return {
        "resid_pre": Site(block, is_input=True),
        **{
            f"attn.{name}": Site(getattr(attention, module), is_input=False, view=Heads(num_heads))
            for name, module in _PROJECTIONS.items()
        },
        "attn.scores": OpenAttention(attention, "scores"),
        "attn.pattern": OpenAttention(attention, "pattern"),
        "attn.z": Site(first.dense, is_input=True, view=Heads(num_heads)),
        "attn.result": Result(first.dense, num_heads),
        "attn_out": Site(first.dense, is_input=False),
        "resid_mid": Site(first.LayerNorm, is_input=True),
        "ln1.scale": Norm(first.LayerNorm),
        "ln1.normed": Site(first.LayerNorm, is_input=False),
        "mlp_in": Site(block.intermediate, is_input=True),
        "mlp.pre": Site(block.intermediate.dense, is_input=False),
        "mlp.post": Site(second.dense, is_input=True),
        "mlp_out": Site(second.dense, is_input=False),
        "resid_post": Site(second.LayerNorm, is_input=True),
        "ln2.scale": Norm(second.LayerNorm),
        "ln2.normed": Site(second.LayerNorm, is_input=False),
    }


def _head_places(model: Any) -> dict[str, Place]:
    # RoBERTa's head is one module, BERT's a transform and a projection.
    head = model.lm_head if hasattr(model, "lm_head") else model.cls.predictions.transform
    norm = head.layer_norm if hasattr(head, "layer_norm") else head.LayerNorm
    return {
        "mlm.pre": Site(head.dense, is_input=False),
        "mlm.post": Site(norm, is_input=True),
        "ln_final.scale": Norm(norm),
        "ln_final.normed": Site(norm, is_input=False),
    }


def _call(model: Any, tokens_BP: Tensor, all_logits: bool, cache: Any, features_BNS: Tensor | None) -> Tensor | None:
    logits_BPV: Tensor | None = getattr(model(tokens_BP), "logits", None)
    return logits_BPV
