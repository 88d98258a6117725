"""
The parts of a transformer that a pass of several stops is put together from, taken out of transformers' own modules.

Llama-shaped models (Llama, Mistral, Qwen 2 and 3) and GPT-2 share one form: norm, attention, add, norm, MLP, add. What
differs is said here once; harvests and replaced MLPs go over the parts, captures over `hooked_pass`.

Legend: B sequences, P positions, D d_model, H query heads, E head width.
"""

import threading
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

__all__ = ["TAKEN_APART", "Block", "Parts", "norm_scale", "normalize", "take_apart"]

TAKEN_APART = (
    "GPT2LMHeadModel",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)


class Block(Protocol):
    """One layer."""

    ln1: nn.Module
    ln2: nn.Module
    mlp: nn.Module

    def attend(self, normed_BPD: Tensor, mask_PP: Tensor | None) -> Tensor:
        """Return what attention adds to the stream."""
        ...

    def mask(self, positions: int) -> Tensor | None:
        """Return what is added to attention scores; None where the kernel's own causal mask does."""
        ...


@dataclass
class Parts:
    """A model taken apart."""

    blocks: list[Block]
    final_norm: nn.Module
    unembed: nn.Module
    embedding: "LlamaEmbedding | Gpt2Embedding"

    def embed(self, tokens_BP: Tensor) -> Tensor:
        """Return what enters the residual stream, and set the positions of this pass."""
        return self.embedding(tokens_BP)


def take_apart(model: Any) -> Parts:
    """Find the parts of a model of one of `TAKEN_APART`."""
    if type(model).__name__ == "GPT2LMHeadModel":
        body = model.transformer
        return Parts([Gpt2Block(layer) for layer in body.h], body.ln_f, model.lm_head, Gpt2Embedding(body))
    body = model.model
    embedding = LlamaEmbedding(body)
    blocks: list[Block] = [
        LlamaBlock(layer, embedding, _window(model.config, i)) for i, layer in enumerate(body.layers)
    ]
    return Parts(blocks, body.norm, model.lm_head, embedding)


def _window(config: Any, layer: int) -> int | None:
    window: int | None = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    return window if kinds is None or kinds[layer] == "sliding_attention" else None


class LlamaEmbedding(threading.local):
    """
    Token embedding; positions enter as rotations, which it keeps for the layers of the same pass.

    Each thread has rotations of its own, since passes of several threads go on at once.
    """

    def __init__(self, body: Any) -> None:
        self._body = body
        self.rotations: tuple[Tensor, Tensor] | None = None

    def __call__(self, tokens_BP: Tensor) -> Tensor:
        embedded_BPD: Tensor = self._body.embed_tokens(tokens_BP)
        positions_1P = torch.arange(tokens_BP.shape[1], device=tokens_BP.device)[None]
        self.rotations = self._body.rotary_emb(embedded_BPD, position_ids=positions_1P)
        return embedded_BPD


class LlamaBlock:
    """A layer of Llama and of the models shaped like it."""

    def __init__(self, layer: Any, embedding: LlamaEmbedding, window: int | None) -> None:
        self.ln1: nn.Module = layer.input_layernorm
        self.ln2: nn.Module = layer.post_attention_layernorm
        self.mlp: nn.Module = layer.mlp
        self._attention = layer.self_attn
        self._embedding = embedding
        self._window = window

    def attend(self, normed_BPD: Tensor, mask_PP: Tensor | None) -> Tensor:
        out_BPD: Tensor = self._attention(
            hidden_states=normed_BPD, position_embeddings=self._embedding.rotations, attention_mask=mask_PP
        )[0]
        return out_BPD

    def mask(self, positions: int) -> Tensor | None:
        return _causal_mask(self.ln1.weight, positions, self._window)


class Gpt2Embedding:
    """Token and position embeddings, added."""

    def __init__(self, body: Any) -> None:
        self._body = body

    def __call__(self, tokens_BP: Tensor) -> Tensor:
        positions_P = torch.arange(tokens_BP.shape[1], device=tokens_BP.device)
        embedded_BPD: Tensor = self._body.wte(tokens_BP) + self._body.wpe(positions_P)
        return embedded_BPD


class Gpt2Block:
    """A layer of GPT-2."""

    def __init__(self, layer: Any) -> None:
        self.ln1: nn.Module = layer.ln_1
        self.ln2: nn.Module = layer.ln_2
        self.mlp: nn.Module = layer.mlp
        self._attention = layer.attn

    def attend(self, normed_BPD: Tensor, mask_PP: Tensor | None) -> Tensor:
        out_BPD: Tensor = self._attention(normed_BPD, attention_mask=mask_PP)[0]
        return out_BPD

    def mask(self, positions: int) -> Tensor | None:
        return _causal_mask(self.ln1.weight, positions, None)


def _causal_mask(like: Any, positions: int, window: int | None) -> Tensor | None:
    """Mask what lies ahead, and what lies `window` positions back or more."""
    if window is None or positions <= window:
        return None
    index_P = torch.arange(positions, device=like.device)
    distance_PP = index_P[:, None] - index_P[None, :]
    seen_PP = (distance_PP >= 0) & (distance_PP < window)
    mask_PP = torch.zeros(positions, positions, dtype=like.dtype, device=like.device)
    return mask_PP.masked_fill_(~seen_PP, torch.finfo(like.dtype).min)[None, None]


def norm_scale(norm: Any, x_BPD: Tensor) -> Tensor:
    """Return what a norm divides by, in float32 at least: RMSNorm sqrt(mean(x^2) + eps), LayerNorm sqrt(var + eps)."""
    wide_BPD = x_BPD.to(torch.promote_types(x_BPD.dtype, torch.float32))
    if isinstance(norm, nn.LayerNorm):
        variance_BP = wide_BPD.var(-1, correction=0)
        return (variance_BP + float(norm.eps)).sqrt()
    epsilon = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
    return (wide_BPD.square().mean(-1) + float(epsilon)).sqrt()


def normalize(norm: Any, x_BPD: Tensor, scale_BP: Tensor, *, weight_offset: float = 0.0) -> Tensor:
    """Apply a norm with another scale than its own; `weight_offset` is added to its weight."""
    wide_BPD = x_BPD.to(scale_BP.dtype)
    if isinstance(norm, nn.LayerNorm):
        wide_BPD = wide_BPD - wide_BPD.mean(-1, keepdim=True)
    out_BPD: Tensor = wide_BPD / scale_BP[..., None] * (norm.weight + weight_offset)
    bias = getattr(norm, "bias", None)
    return (out_BPD if bias is None else out_BPD + bias).to(x_BPD.dtype)
