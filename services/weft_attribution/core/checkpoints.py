"""
Frozen weights straight from a model's folder, a family after the other.

Read are `config.json` and the tensors of `*.safetensors` that a sweep needs, under the names that Hugging Face models
have. Gemma's RMSNorms multiply by 1 + weight; GPT-NeoX has queries, keys and values of a head side by side in one
matrix, GPT-2 those of all heads.

Legend: D d_model, E head size, K key-value heads times head size.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from weft_attribution.core.weights import LayerWeights, LinearWeights, Norm
from weft_common.errors import FailedPreconditionError, NotFoundError

__all__ = ["Checkpoint", "load_linear_weights"]

_LLAMA_TYPES = ("llama", "mistral", "qwen2", "qwen3")
_GEMMA_TYPES = ("gemma2", "gemma3_text")
_GEMMA2_LOGIT_CAP = 30.0
_TURN_TOKENS = 4
"""Of Gemma 3's instructed models: the start, `<start_of_turn>`, `user` and a new line, as in circuit-tracer."""


class Checkpoint:
    """Named tensors of the safetensors files in one folder, read one at a time."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._folder = folder
        self._file_of: dict[str, Path] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                self._file_of.update(dict.fromkeys(file.keys(), path))

    @property
    def name(self) -> str:
        return self._folder.name

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

    def rms_norm(self, name: str, added: float = 0.0) -> Norm:
        return Norm(self.read(f"{name}.weight") + added, None, centred=False)

    def layer_norm(self, name: str) -> Norm:
        return Norm(self.read(f"{name}.weight"), self.read(f"{name}.bias"), centred=True)

    def unembedding(self, name: str, embedding_VD: Tensor, *, is_tied: bool) -> Tensor:
        return embedding_VD if is_tied or not self.has(name) else self.read(name)


def load_linear_weights(folder: Path, dtype: torch.dtype = torch.float32) -> LinearWeights:
    """
    Read the frozen weights of a model folder: Llama, Mistral, Qwen 2 and 3, Gemma 2 and 3, GPT-2, GPT-NeoX.

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
    loaders = {
        **dict.fromkeys(_LLAMA_TYPES, _load_llama),
        **dict.fromkeys(_GEMMA_TYPES, _load_gemma),
        "gpt2": _load_gpt2,
        "gpt_neox": _load_gpt_neox,
    }
    if kind not in loaders:
        raise FailedPreconditionError(
            f"model type {kind!r} in {config_path} is not supported: expected one of {', '.join(loaders)}"
        )
    return loaders[kind](config, Checkpoint(folder, dtype))


def _layer(
    *,
    before: Norm,
    value_KD: Tensor,
    value_bias_K: Tensor,
    output_ZD: Tensor,
    output_bias_D: Tensor,
    mlp_norm: Norm,
    after: Norm | None = None,
) -> LayerWeights:
    """Fold the norms before and after attention into its projections."""
    weight_D = torch.ones_like(output_bias_D) if after is None else after.weight_D
    return LayerWeights(
        value_KD=before.fold(value_KD).contiguous(),
        value_bias_K=value_bias_K + before.offset(value_KD),
        output_ZD=(output_ZD * weight_D).contiguous(),
        output_bias_D=output_bias_D * weight_D,
        mlp_norm=mlp_norm,
    )


def _load_llama(config: Mapping[str, Any], checkpoint: Checkpoint) -> LinearWeights:
    return _load_rms(config, checkpoint)


def _load_gemma(config: Mapping[str, Any], checkpoint: Checkpoint) -> LinearWeights:
    is_second = config["model_type"] == "gemma2"
    cap = config.get("final_logit_softcapping", _GEMMA2_LOGIT_CAP if is_second else None)
    instructed = not is_second and checkpoint.name.lower().endswith("-it")
    return _load_rms(
        config,
        checkpoint,
        added=1.0,
        embedding_scale=float(np.float32(int(config["hidden_size"]) ** 0.5)),
        has_post_norms=True,
        logit_cap=float(cap or 0.0),
        first_position=_TURN_TOKENS if instructed else 1,
    )


def _load_rms(config: Mapping[str, Any], checkpoint: Checkpoint, *, added: float = 0.0, **others: Any) -> LinearWeights:
    """Read a model of Llama's shape; `added` is added to norm weights, `others` are fields of its weights."""
    num_heads, d_model = int(config["num_attention_heads"]), int(config["hidden_size"])
    has_post_norms = bool(others.get("has_post_norms"))
    # What follows attention in name is the norm before the MLP, but for a model that norms what attention returns.
    mlp_norm = "pre_feedforward_layernorm" if has_post_norms else "post_attention_layernorm"
    layers = []
    for layer in range(int(config["num_hidden_layers"])):
        prefix = f"model.layers.{layer}."
        value_KD = checkpoint.read(f"{prefix}self_attn.v_proj.weight")
        layers.append(
            _layer(
                before=checkpoint.rms_norm(f"{prefix}input_layernorm", added),
                value_KD=value_KD,
                value_bias_K=checkpoint.bias(f"{prefix}self_attn.v_proj.bias", value_KD.shape[0]),
                output_ZD=checkpoint.read(f"{prefix}self_attn.o_proj.weight").T,
                output_bias_D=checkpoint.bias(f"{prefix}self_attn.o_proj.bias", d_model),
                after=checkpoint.rms_norm(f"{prefix}post_attention_layernorm", added) if has_post_norms else None,
                mlp_norm=checkpoint.rms_norm(f"{prefix}{mlp_norm}", added),
            )
        )
    embedding_VD = checkpoint.read("model.embed_tokens.weight")
    return LinearWeights(
        num_heads=num_heads,
        num_kv_heads=int(config.get("num_key_value_heads") or num_heads),
        embedding_VD=embedding_VD,
        position_embedding_PD=None,
        unembedding_VD=checkpoint.unembedding(
            "lm_head.weight", embedding_VD, is_tied=bool(config.get("tie_word_embeddings", False))
        ),
        unembedding_bias_V=checkpoint.read_or_none("lm_head.bias"),
        final_norm=checkpoint.rms_norm("model.norm", added),
        layers=tuple(layers),
        **others,
    )


def _load_gpt2(config: Mapping[str, Any], checkpoint: Checkpoint) -> LinearWeights:
    prefix = "transformer." if checkpoint.has("transformer.wte.weight") else ""
    d_model = int(config["n_embd"])
    layers = []
    for layer in range(int(config["n_layer"])):
        base = f"{prefix}h.{layer}."
        layers.append(
            _layer(
                before=checkpoint.layer_norm(f"{base}ln_1"),
                value_KD=checkpoint.read(f"{base}attn.c_attn.weight")[:, 2 * d_model :].T,
                value_bias_K=checkpoint.read(f"{base}attn.c_attn.bias")[2 * d_model :],
                output_ZD=checkpoint.read(f"{base}attn.c_proj.weight"),
                output_bias_D=checkpoint.read(f"{base}attn.c_proj.bias"),
                mlp_norm=checkpoint.layer_norm(f"{base}ln_2"),
            )
        )
    embedding_VD = checkpoint.read(f"{prefix}wte.weight")
    return LinearWeights(
        num_heads=int(config["n_head"]),
        num_kv_heads=int(config["n_head"]),
        embedding_VD=embedding_VD,
        position_embedding_PD=checkpoint.read(f"{prefix}wpe.weight"),
        unembedding_VD=checkpoint.unembedding(
            "lm_head.weight", embedding_VD, is_tied=bool(config.get("tie_word_embeddings", True))
        ),
        unembedding_bias_V=None,
        final_norm=checkpoint.layer_norm(f"{prefix}ln_f"),
        layers=tuple(layers),
    )


def _load_gpt_neox(config: Mapping[str, Any], checkpoint: Checkpoint) -> LinearWeights:
    d_model, num_heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    layers = []
    for layer in range(int(config["num_hidden_layers"])):
        base = f"gpt_neox.layers.{layer}."
        fused = checkpoint.read(f"{base}attention.query_key_value.weight").view(num_heads, 3, -1, d_model)
        bias = checkpoint.bias(f"{base}attention.query_key_value.bias", fused[..., 0].numel()).view(num_heads, 3, -1)
        layers.append(
            _layer(
                before=checkpoint.layer_norm(f"{base}input_layernorm"),
                value_KD=fused[:, 2].flatten(0, 1),
                value_bias_K=bias[:, 2].flatten(),
                output_ZD=checkpoint.read(f"{base}attention.dense.weight").T,
                output_bias_D=checkpoint.bias(f"{base}attention.dense.bias", d_model),
                mlp_norm=checkpoint.layer_norm(f"{base}post_attention_layernorm"),
            )
        )
    embedding_VD = checkpoint.read("gpt_neox.embed_in.weight")
    return LinearWeights(
        num_heads=num_heads,
        num_kv_heads=num_heads,
        embedding_VD=embedding_VD,
        position_embedding_PD=None,
        unembedding_VD=checkpoint.unembedding(
            "embed_out.weight", embedding_VD, is_tied=bool(config.get("tie_word_embeddings", False))
        ),
        unembedding_bias_V=None,
        final_norm=checkpoint.layer_norm("gpt_neox.final_layer_norm"),
        layers=tuple(layers),
        is_parallel=bool(config.get("use_parallel_residual", True)),
    )
