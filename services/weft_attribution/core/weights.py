"""
The frozen weights of a base model that a linear sweep needs; `checkpoints` reads them.

They are the embeddings, the value and output projections, the norms and the unembedding; never the MLPs, the queries
or the keys. A norm's weights are folded into what reads from it, and those of a norm after attention into what
attention writes; so is a LayerNorm's centring. With the folded weights every norm is a division by its frozen scale,
RMSNorm and LayerNorm alike.

Legend: D d_model, V vocabulary, Z query heads times head size, K key-value heads times head size, N tokens or readers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LayerWeights", "LinearWeights", "Norm"]


@dataclass(frozen=True)
class Norm:
    """A norm's parameters: `y = (x - mean(x) if centred else x) / scale * weight + bias`."""

    weight_D: Tensor
    bias_D: Tensor | None
    centred: bool

    def fold(self, readers_ND: Tensor) -> Tensor:
        """
        Turn vectors that read the norm's output into vectors that read its input divided by its scale.

        >>> norm = Norm(torch.tensor([1.0, 2.0]), None, centred=True)
        >>> norm.fold(torch.tensor([[1.0, 1.0]])).tolist()
        [[-0.5, 0.5]]
        """
        folded_ND = readers_ND * self.weight_D
        return folded_ND - folded_ND.mean(dim=-1, keepdim=True) if self.centred else folded_ND

    def offset(self, readers_ND: Tensor) -> Tensor:
        """What vectors that read the norm's output see of its bias."""
        if self.bias_D is None:
            return torch.zeros(readers_ND.shape[:-1], dtype=readers_ND.dtype)
        return readers_ND @ self.bias_D


@dataclass(frozen=True)
class LayerWeights:
    """
    One layer's attention, as far as it is linear once patterns and scales are frozen.

    Args:
        value_KD: Value projection with the norm before it folded in.
        value_bias_K: What each value holds whatever the residual stream is.
        output_ZD: Output projection: what each head coordinate writes, with the norm after it folded in.
        output_bias_D: Bias of the output projection, folded alike.
        mlp_norm: The norm before the MLP.
    """

    value_KD: Tensor
    value_bias_K: Tensor
    output_ZD: Tensor
    output_bias_D: Tensor
    mlp_norm: Norm


@dataclass(frozen=True)
class LinearWeights:
    """
    All the frozen weights of one model.

    Args:
        num_heads: Query heads.
        num_kv_heads: Heads of keys and values.
        embedding_VD: Token embeddings as they are stored.
        position_embedding_PD: Learned embeddings of positions.
        unembedding_VD: What reads the last norm's output.
        unembedding_bias_V: Its bias.
        final_norm: The last norm.
        layers: From the first.
        embedding_scale: What a token's embedding is multiplied by.
        has_post_norms: What attention and MLPs return is normed before it is added.
        is_parallel: An MLP reads the stream as it was before the attention of its layer.
        logit_cap: Logits are `cap * tanh(logit / cap)`; 0 where they are not capped. What is explained is the logit
            before that.
        first_position: Positions before it have neither features nor errors: their MLP outputs are constants.
    """

    num_heads: int
    num_kv_heads: int
    embedding_VD: Tensor
    position_embedding_PD: Tensor | None
    unembedding_VD: Tensor
    unembedding_bias_V: Tensor | None
    final_norm: Norm
    layers: tuple[LayerWeights, ...]
    embedding_scale: float = 1.0
    has_post_norms: bool = False
    is_parallel: bool = False
    logit_cap: float = 0.0
    first_position: int = 1

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def d_model(self) -> int:
        return int(self.embedding_VD.shape[1])

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding_VD.dtype

    def embed(self, token_ids: Tensor) -> Tensor:
        """What tokens put into the residual stream: [N, D]."""
        return self.embedding_VD[token_ids] * self.embedding_scale

    def logits(self, normed_D: Tensor) -> Tensor:
        """All logits of what the last norm returns, before any cap: [V]."""
        logits_V = self.unembedding_VD @ normed_D
        return logits_V if self.unembedding_bias_V is None else logits_V + self.unembedding_bias_V

    def logit_readers(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Folded vectors and offsets that read demeaned logits of `token_ids` from the final residual stream."""
        readers_ND = self.unembedding_VD[token_ids] - self.unembedding_VD.mean(dim=0)
        offset_N = self.final_norm.offset(readers_ND)
        if self.unembedding_bias_V is not None:
            offset_N = offset_N + self.unembedding_bias_V[token_ids] - self.unembedding_bias_V.mean()
        return self.final_norm.fold(readers_ND), offset_N
