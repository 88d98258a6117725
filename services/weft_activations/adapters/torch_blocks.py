"""
The parts of a transformer that one forward pass is put together from, taken out of transformers' own modules.

Llama-shaped models (Llama, Mistral, Qwen 2 and 3) and GPT-2 share one form: norm, attention, add, norm, MLP, add. What
differs is said here once; `forward_pass` knows none of it.

Legend: B sequences, P positions, D d_model, H query heads, E head width.
"""

import threading
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

__all__ = ["ARCHITECTURES", "Block", "Parts", "norm_scale", "normalize", "take_apart"]

ARCHITECTURES = (
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

    def attend(self, normed_BPD: Tensor, mask_PP: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return what attention adds to the stream and, where the model runs eagerly, its pattern [B, H, P, P]."""
        ...

    def attend_with(self, normed_BPD: Tensor, pattern_BHPP: Tensor) -> Tensor:
        """Return what attention adds to the stream under a given pattern: values and output projection alone."""
        ...

    def mask(self, positions: int, *, eager: bool) -> Tensor | None:
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
    """Find the parts of a model of one of `ARCHITECTURES`."""
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

    def attend(self, normed_BPD: Tensor, mask_PP: Tensor | None) -> tuple[Tensor, Tensor | None]:
        out_BPD, pattern_BHPP = self._attention(
            hidden_states=normed_BPD, position_embeddings=self._embedding.rotations, attention_mask=mask_PP
        )
        return out_BPD, pattern_BHPP

    def attend_with(self, normed_BPD: Tensor, pattern_BHPP: Tensor) -> Tensor:
        attention = self._attention
        num_sequences, positions, _ = normed_BPD.shape
        values = attention.v_proj(normed_BPD).view(num_sequences, positions, -1, attention.head_dim).transpose(1, 2)
        values_BHPE = values.repeat_interleave(attention.num_key_value_groups, dim=1)
        mixed = (pattern_BHPP @ values_BHPE).transpose(1, 2).reshape(num_sequences, positions, -1)
        out_BPD: Tensor = attention.o_proj(mixed)
        return out_BPD

    def mask(self, positions: int, *, eager: bool) -> Tensor | None:
        return _causal_mask(self._attention.o_proj.weight, positions, self._window, eager=eager)


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

    def attend(self, normed_BPD: Tensor, mask_PP: Tensor | None) -> tuple[Tensor, Tensor | None]:
        out_BPD, pattern_BHPP = self._attention(normed_BPD, attention_mask=mask_PP)
        return out_BPD, pattern_BHPP

    def attend_with(self, normed_BPD: Tensor, pattern_BHPP: Tensor) -> Tensor:
        attention = self._attention
        num_sequences, positions, width = normed_BPD.shape
        values_BPD = attention.c_attn(normed_BPD).split(attention.split_size, dim=2)[2]
        values_BHPE = values_BPD.view(num_sequences, positions, -1, attention.head_dim).transpose(1, 2)
        mixed_BPD = (pattern_BHPP @ values_BHPE).transpose(1, 2).reshape(num_sequences, positions, width)
        out_BPD: Tensor = attention.c_proj(mixed_BPD)
        return out_BPD

    def mask(self, positions: int, *, eager: bool) -> Tensor | None:
        return _causal_mask(self._attention.c_proj.weight, positions, None, eager=eager)


def _causal_mask(like: Tensor, positions: int, window: int | None, *, eager: bool) -> Tensor | None:
    """Mask what lies ahead, and what lies `window` positions back or more."""
    windowed = window is not None and positions > window
    if not eager and not windowed:
        return None
    index_P = torch.arange(positions, device=like.device)
    distance_PP = index_P[:, None] - index_P[None, :]
    seen_PP = distance_PP >= 0
    if window is not None:
        seen_PP &= distance_PP < window
    mask_PP = torch.zeros(positions, positions, dtype=like.dtype, device=like.device)
    return mask_PP.masked_fill_(~seen_PP, torch.finfo(like.dtype).min)[None, None]


def norm_scale(norm: Any, x_BPD: Tensor) -> Tensor:
    """Return what a norm divides by: RMSNorm sqrt(mean(x^2) + eps), LayerNorm sqrt(var + eps)."""
    wide_BPD = x_BPD.to(torch.promote_types(x_BPD.dtype, torch.float32))
    if isinstance(norm, nn.LayerNorm):
        variance_BP = wide_BPD.var(-1, correction=0)
        return (variance_BP + float(norm.eps)).sqrt()
    return (wide_BPD.square().mean(-1) + float(norm.variance_epsilon)).sqrt()


def normalize(norm: Any, x_BPD: Tensor, scale_BP: Tensor | None) -> Tensor:
    """Apply a norm, with its own scale or with one that is held."""
    if scale_BP is None:
        own_BPD: Tensor = norm(x_BPD)
        return own_BPD
    wide_BPD = x_BPD.to(scale_BP.dtype)
    if isinstance(norm, nn.LayerNorm):
        wide_BPD = wide_BPD - wide_BPD.mean(-1, keepdim=True)
    out_BPD: Tensor = wide_BPD / scale_BP[..., None] * norm.weight
    bias = getattr(norm, "bias", None)
    return (out_BPD if bias is None else out_BPD + bias).to(x_BPD.dtype)
