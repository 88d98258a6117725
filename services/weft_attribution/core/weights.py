"""
The frozen weights of a base model that a linear sweep needs, straight from its folder.

Read are the embeddings, the value and output projections, the norms and the unembedding; never the MLPs, the queries
or the keys. Norm weights are folded into what reads from the norm, and so is a LayerNorm's centring: with the folded
weights, a norm is a division by its frozen scale, for Llama (RMSNorm) and GPT-2 (LayerNorm) alike.

Legend: D d_model, V vocabulary, Z query heads times head size, K key-value heads times head size.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from weft_common.errors import FailedPreconditionError, NotFoundError

__all__ = ["LayerWeights", "LinearWeights", "Norm", "load_linear_weights"]

LLAMA_TYPES = ("llama", "mistral", "qwen2", "qwen3")
GPT2_TYPES = ("gpt2",)


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
        output_ZD: Output projection: what each head coordinate writes.
        output_bias_D: Bias of the output projection.
        mlp_norm: The norm before the MLP.
    """

    value_KD: Tensor
    value_bias_K: Tensor
    output_ZD: Tensor
    output_bias_D: Tensor
    mlp_norm: Norm


@dataclass(frozen=True)
class LinearWeights:
    """All the frozen weights of one model."""

    num_heads: int
    num_kv_heads: int
    embedding_VD: Tensor
    position_embedding_PD: Tensor | None
    unembedding_VD: Tensor
    unembedding_bias_V: Tensor | None
    final_norm: Norm
    layers: tuple[LayerWeights, ...]

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def d_model(self) -> int:
        return int(self.embedding_VD.shape[1])

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding_VD.dtype

    def logit_readers(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Folded vectors and offsets that read demeaned logits of `token_ids` from the final residual stream."""
        readers_ND = self.unembedding_VD[token_ids] - self.unembedding_VD.mean(dim=0)
        offset_N = self.final_norm.offset(readers_ND)
        if self.unembedding_bias_V is not None:
            offset_N = offset_N + self.unembedding_bias_V[token_ids] - self.unembedding_bias_V.mean()
        return self.final_norm.fold(readers_ND), offset_N


class _Checkpoint:
    """Named tensors of the safetensors files in one folder, read one at a time."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._folder = folder
        self._file_of: dict[str, Path] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                self._file_of.update(dict.fromkeys(file.keys(), path))

    def has(self, name: str) -> bool:
        return name in self._file_of

    def read(self, name: str) -> Tensor:
        if name not in self._file_of:
            raise FailedPreconditionError(
                f"the checkpoint in {self._folder} has no tensor {name!r}; "
                "give the folder of a complete safetensors checkpoint"
            )
        with safe_open(self._file_of[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor.to(self._dtype)

    def read_or_none(self, name: str) -> Tensor | None:
        return self.read(name) if self.has(name) else None

    def bias(self, name: str, size: int) -> Tensor:
        found = self.read_or_none(name)
        return torch.zeros(size, dtype=self._dtype) if found is None else found


def load_linear_weights(folder: Path, dtype: torch.dtype = torch.float32) -> LinearWeights:
    """
    Read the frozen weights of a Llama-like or GPT-2 model folder.

    Args:
        folder: A Hugging Face folder: `config.json` and `*.safetensors`.
        dtype: What the sweep computes in.

    Raises:
        NotFoundError: The folder or its configuration is missing.
        FailedPreconditionError: The architecture is not supported, or a tensor is missing.
    """
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise NotFoundError(
            f"no model folder at {folder}: expected a config.json there; "
            "set WEFT_ATTRIBUTION_MODELS_DIR to the folder that holds the models"
        )
    config = json.loads(config_path.read_text(encoding="utf-8"))
    kind = config.get("model_type")
    checkpoint = _Checkpoint(folder, dtype)
    if kind in LLAMA_TYPES:
        return _load_llama(config, checkpoint)
    if kind in GPT2_TYPES:
        return _load_gpt2(config, checkpoint)
    raise FailedPreconditionError(
        f"model type {kind!r} in {config_path} is not supported: "
        f"expected one of {', '.join((*LLAMA_TYPES, *GPT2_TYPES))}"
    )


def _fold_value(norm: Norm, value_KD: Tensor, value_bias_K: Tensor) -> tuple[Tensor, Tensor]:
    return norm.fold(value_KD).contiguous(), value_bias_K + norm.offset(value_KD)


def _load_llama(config: Mapping[str, Any], checkpoint: _Checkpoint) -> LinearWeights:
    num_heads = int(config["num_attention_heads"])
    num_kv_heads = int(config.get("num_key_value_heads") or num_heads)
    d_model = int(config["hidden_size"])
    layers = []
    for layer in range(int(config["num_hidden_layers"])):
        prefix = f"model.layers.{layer}."
        value_KD = checkpoint.read(f"{prefix}self_attn.v_proj.weight")
        output_ZD = checkpoint.read(f"{prefix}self_attn.o_proj.weight").T.contiguous()
        attention_norm = Norm(checkpoint.read(f"{prefix}input_layernorm.weight"), None, centred=False)
        value_bias_K = checkpoint.bias(f"{prefix}self_attn.v_proj.bias", value_KD.shape[0])
        value_KD, value_bias_K = _fold_value(attention_norm, value_KD, value_bias_K)
        layers.append(
            LayerWeights(
                value_KD=value_KD,
                value_bias_K=value_bias_K,
                output_ZD=output_ZD,
                output_bias_D=checkpoint.bias(f"{prefix}self_attn.o_proj.bias", d_model),
                mlp_norm=Norm(checkpoint.read(f"{prefix}post_attention_layernorm.weight"), None, centred=False),
            )
        )
    embedding_VD = checkpoint.read("model.embed_tokens.weight")
    tied = bool(config.get("tie_word_embeddings", False)) or not checkpoint.has("lm_head.weight")
    return LinearWeights(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        embedding_VD=embedding_VD,
        position_embedding_PD=None,
        unembedding_VD=embedding_VD if tied else checkpoint.read("lm_head.weight"),
        unembedding_bias_V=checkpoint.read_or_none("lm_head.bias"),
        final_norm=Norm(checkpoint.read("model.norm.weight"), None, centred=False),
        layers=tuple(layers),
    )


def _load_gpt2(config: Mapping[str, Any], checkpoint: _Checkpoint) -> LinearWeights:
    prefix = "transformer." if checkpoint.has("transformer.wte.weight") else ""
    d_model = int(config["n_embd"])

    def norm(name: str) -> Norm:
        return Norm(checkpoint.read(f"{prefix}{name}.weight"), checkpoint.read(f"{prefix}{name}.bias"), centred=True)

    layers = []
    for layer in range(int(config["n_layer"])):
        base = f"{prefix}h.{layer}.attn."
        value_KD = checkpoint.read(f"{base}c_attn.weight")[:, 2 * d_model :].T
        value_bias_K = checkpoint.read(f"{base}c_attn.bias")[2 * d_model :]
        value_KD, value_bias_K = _fold_value(norm(f"h.{layer}.ln_1"), value_KD, value_bias_K)
        layers.append(
            LayerWeights(
                value_KD=value_KD,
                value_bias_K=value_bias_K,
                output_ZD=checkpoint.read(f"{base}c_proj.weight"),
                output_bias_D=checkpoint.read(f"{base}c_proj.bias"),
                mlp_norm=norm(f"h.{layer}.ln_2"),
            )
        )
    embedding_VD = checkpoint.read(f"{prefix}wte.weight")
    tied = bool(config.get("tie_word_embeddings", True)) or not checkpoint.has("lm_head.weight")
    return LinearWeights(
        num_heads=int(config["n_head"]),
        num_kv_heads=int(config["n_head"]),
        embedding_VD=embedding_VD,
        position_embedding_PD=checkpoint.read(f"{prefix}wpe.weight"),
        unembedding_VD=embedding_VD if tied else checkpoint.read("lm_head.weight"),
        unembedding_bias_V=None,
        final_norm=norm("ln_f"),
        layers=tuple(layers),
    )
