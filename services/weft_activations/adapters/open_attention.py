"""
Attention whose inside can be read and changed, as one of transformers' attention functions.

Every architecture calls the function that its configuration names; this one is registered beside `eager` and `sdpa`
and computes what `eager` does. Without a pass around it, it only computes.

Legend: B sequences, H query heads, K key and value heads, P positions, E head width.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

__all__ = ["OPEN", "visited"]

OPEN = "weft_open"
"""What a model's `attn_implementation` is called while its attention is open."""

Visit = Callable[[nn.Module, str, Tensor], Tensor]
"""Takes the attention module, `q_rot`, `k_rot`, `scores` or `pattern`, and what lies there; returns what goes on."""


class _Running(threading.local):
    visit: Visit | None = None


_RUNNING = _Running()


@contextmanager
def visited(visit: Visit) -> Iterator[None]:
    """Show this thread's attention to `visit` for as long as the context lasts."""
    _RUNNING.visit = visit
    try:
        yield
    finally:
        _RUNNING.visit = None


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, Tensor]:
    """Return [B, P, H, E] and the pattern [B, H, P, P]; scores that the mask hides are minus infinity."""
    visit = _RUNNING.visit or _pass_by
    query, key = visit(module, "q_rot", query), visit(module, "k_rot", key)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores_BHPP = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores_BHPP = (scores_BHPP / softcap).tanh() * softcap
    if attention_mask is not None:
        hidden_BHPP = attention_mask < torch.finfo(attention_mask.dtype).min / 2
        scores_BHPP = (scores_BHPP + attention_mask).masked_fill_(hidden_BHPP, -torch.inf)
    scores_BHPP = visit(module, "scores", scores_BHPP)
    pattern_BHPP = scores_BHPP.softmax(-1, dtype=torch.promote_types(query.dtype, torch.float32)).to(query.dtype)
    pattern_BHPP = visit(module, "pattern", pattern_BHPP)
    return (pattern_BHPP @ value).transpose(1, 2).contiguous(), pattern_BHPP


def _pass_by(module: nn.Module, inner: str, value: Tensor) -> Tensor:
    return value


AttentionInterface.register(OPEN, _attend)
AttentionMaskInterface.register(OPEN, eager_mask)
