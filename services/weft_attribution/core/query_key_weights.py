"""
Query and key projections of one head, straight from a model's folder.

The norm before attention is folded into them. Where queries and keys are normed too, that norm's weights stand beside.

Legend: D d_model, E head size.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weft_attribution.core.checkpoints import Checkpoint
from weft_attribution.core.weights import Norm

__all__ = ["HeadSide", "QueryKeyWeights", "load_query_key"]

_NEOX_ROTATED_SHARE = 0.25


@dataclass(frozen=True)
class HeadSide:
    """
    How a head makes its queries, or its keys, of the stream before attention divided by its norm's scale.

    Args:
        project_ED: The projection.
        bias_E: What is added whatever the stream is.
        norm_E: Weights of the norm that follows; absent where there is none.
    """

    project_ED: Tensor
    bias_E: Tensor
    norm_E: Tensor | None


@dataclass(frozen=True)
class QueryKeyWeights:
    """
    One head's queries and keys.

    Args:
        query: How queries are made.
        key: How the keys are made that it looks at.
        key_head: Which of the key heads that is.
        scaling: What inner products are multiplied by.
        epsilon: Of the norms of queries and keys.
        num_rotated: How many dims of a head turn with the position, the first ones; 0: none.
    """

    query: HeadSide
    key: HeadSide
    key_head: int
    scaling: float
    epsilon: float
    num_rotated: int


def load_query_key(folder: Path, layer: int, head: int, dtype: torch.dtype) -> QueryKeyWeights:
    """
    Read one head of a family that `load_linear_weights` reads.

    Args:
        folder: A Hugging Face folder.
        layer: The layer.
        head: The query head.
        dtype: What is computed in.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    checkpoint = Checkpoint(folder, dtype)
    if config["model_type"] == "gpt2":
        return _load_gpt2(config, checkpoint, layer, head)
    if config["model_type"] == "gpt_neox":
        return _load_gpt_neox(config, checkpoint, layer, head)
    return _load_rms(config, checkpoint, layer, head)


def _side(before: Norm, project_ED: Tensor, bias_E: Tensor, norm_E: Tensor | None = None) -> HeadSide:
    return HeadSide(before.fold(project_ED), bias_E + before.offset(project_ED), norm_E)


def _load_rms(config: Mapping[str, Any], checkpoint: Checkpoint, layer: int, head: int) -> QueryKeyWeights:
    is_gemma = str(config["model_type"]).startswith("gemma")
    heads = int(config["num_attention_heads"])
    key_head = head // (heads // int(config.get("num_key_value_heads") or heads))
    prefix = f"model.layers.{layer}."
    before = checkpoint.rms_norm(f"{prefix}input_layernorm", 1.0 if is_gemma else 0.0)
    whole_ZD = checkpoint.read(f"{prefix}self_attn.q_proj.weight")
    size = len(whole_ZD) // heads

    def side(name: str, which: int, project_ZD: Tensor) -> HeadSide:
        rows = slice(which * size, (which + 1) * size)
        bias_Z = checkpoint.bias(f"{prefix}self_attn.{name}_proj.bias", len(project_ZD))
        norm_E = checkpoint.read_or_none(f"{prefix}self_attn.{name}_norm.weight")
        if norm_E is not None and is_gemma:
            norm_E = norm_E + 1.0
        return _side(before, project_ZD[rows], bias_Z[rows], norm_E)

    return QueryKeyWeights(
        query=side("q", head, whole_ZD),
        key=side("k", key_head, checkpoint.read(f"{prefix}self_attn.k_proj.weight")),
        key_head=key_head,
        scaling=float(config.get("query_pre_attn_scalar") or size) ** -0.5 if is_gemma else size**-0.5,
        epsilon=float(config["rms_norm_eps"]),
        num_rotated=size,
    )


def _load_gpt2(config: Mapping[str, Any], checkpoint: Checkpoint, layer: int, head: int) -> QueryKeyWeights:
    prefix = "transformer." if checkpoint.has("transformer.wte.weight") else ""
    d_model, size = int(config["n_embd"]), int(config["n_embd"]) // int(config["n_head"])
    base = f"{prefix}h.{layer}."
    before = checkpoint.layer_norm(f"{base}ln_1")
    weight = checkpoint.read(f"{base}attn.c_attn.weight").T
    bias = checkpoint.read(f"{base}attn.c_attn.bias")
    sides = []
    for place in range(2):
        rows = slice(place * d_model + head * size, place * d_model + (head + 1) * size)
        sides.append(_side(before, weight[rows], bias[rows]))
    scaling = size**-0.5 if config.get("scale_attn_weights", True) else 1.0
    if config.get("scale_attn_by_inverse_layer_idx"):
        scaling /= layer + 1
    return QueryKeyWeights(sides[0], sides[1], head, scaling, epsilon=0.0, num_rotated=0)


def _load_gpt_neox(config: Mapping[str, Any], checkpoint: Checkpoint, layer: int, head: int) -> QueryKeyWeights:
    d_model, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    base = f"gpt_neox.layers.{layer}."
    before = checkpoint.layer_norm(f"{base}input_layernorm")
    fused = checkpoint.read(f"{base}attention.query_key_value.weight").view(heads, 3, -1, d_model)
    bias = checkpoint.bias(f"{base}attention.query_key_value.bias", fused[..., 0].numel()).view(heads, 3, -1)
    size = fused.shape[2]
    positions = config.get("rope_parameters") or {}
    share = positions.get("partial_rotary_factor", config.get("rotary_pct", _NEOX_ROTATED_SHARE))
    return QueryKeyWeights(
        query=_side(before, fused[head, 0], bias[head, 0]),
        key=_side(before, fused[head, 1], bias[head, 1]),
        key_head=head,
        scaling=size**-0.5,
        epsilon=0.0,
        # Dims turn in pairs: an odd one takes another along.
        num_rotated=(int(size * share) + 1) // 2 * 2,
    )
