"""
Small models and transcoders that circuit-tracer and weft both explain: the same numbers from the same names anywhere.

    write_model(family, folder)             config.json and weights; any release of transformers from 4.57 on
    write_transcoder(kind, family, folder)  in circuit-tracer's own layouts, for these models or for a large one

Every tensor is drawn from a seed of its own, the CRC-32 of its name.

`benchmarks/attribution/make_goldens.py` runs circuit-tracer on them in its environment and keeps its graphs in
`tests/assets/circuit_tracer/`; `test_same_graph` compares. Nothing here comes from either of them.
"""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, AutoModelForCausalLM

LAYERS, WIDTH, VOCAB, FEATURES = 3, 16, 40, 10
PROMPT = (2, 17, 8, 29, 8, 11)
KINDS = ("clt", "skips")
NODE_THRESHOLD, EDGE_THRESHOLD = 0.8, 0.98
_GROUPED = {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4}
_LOCAL = ["sliding_attention", "full_attention", "sliding_attention"]
_GEMMA = {**_GROUPED, "query_pre_attn_scalar": 8, "layer_types": _LOCAL}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "llama": ("llama", {"num_key_value_heads": 2}),
    "mistral": ("mistral", _GROUPED),
    "qwen2": ("qwen2", {"num_key_value_heads": 2}),
    "qwen3": ("qwen3", {"num_key_value_heads": 2, "head_dim": 8}),
    "gemma2": ("gemma2", {**_GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0}),
    "gemma3": ("gemma3_text", _GEMMA),
    "neox": ("gpt_neox", {"num_attention_heads": 2, "use_parallel_residual": True}),
}

Array = NDArray[np.float32]


def numbers(name: str, shape: tuple[int, ...], scale: float) -> Array:
    """Uniform numbers of a standard deviation, the same for the same name."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    return ((random.random(shape) - 0.5) * np.sqrt(12) * scale).astype(np.float32)


def write_model(family: str, folder: Path) -> None:
    """Write a model whose norms and biases are off 1 and 0."""
    kind, others = FAMILIES[family]
    sizes: dict[str, Any] = {
        "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 24,
    }  # fmt: skip
    if kind == "gpt2":
        sizes = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "n_ctx": 64}
    config = AutoConfig.for_model(
        kind, **{**sizes, **others}, vocab_size=VOCAB, max_position_embeddings=64, tie_word_embeddings=False,
        bos_token_id=2, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for name, value in model.named_parameters():
            scale = 0.2 if value.dim() == 1 else 1.0 if name.endswith(("embed_tokens.weight", "wte.weight")) else 0.25
            base = value if value.dim() == 1 else torch.zeros_like(value)
            # GPT-NeoX's has another name from release to release.
            drawn = "lm_head.weight" if name == "embed_out.weight" else name
            value.copy_(base + torch.from_numpy(numbers(f"{family} {drawn}", tuple(value.shape), scale)))
    model.save_pretrained(folder)
    words = Tokenizer(WordLevel({f"t{token}": token for token in range(VOCAB)}, unk_token="t0"))
    words.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}\n')


def write_transcoder(
    kind: str, family: str, folder: Path, inputs_LPD: Array | None = None, *, features: int = FEATURES, active: int = 0
) -> None:
    """
    Write a cross-layer transcoder with thresholds, or a set of per-layer ones with skips, ReLU.

    With a model's MLP inputs its sizes are the model's, and `active` features a token and layer fire on them, the
    first position's aside.
    """
    layers, _, width = (LAYERS, 0, WIDTH) if inputs_LPD is None else inputs_LPD.shape
    narrow = (WIDTH / width) ** 0.5
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{family} {kind}"
    for layer in range(layers):
        w_enc_FD = numbers(f"{name} enc {layer}", (features, width), 0.3 * narrow)
        b_enc_F = numbers(f"{name} b_enc {layer}", (features,), 0.3) - np.float32(0.2)
        threshold_F = np.abs(numbers(f"{name} threshold {layer}", (features,), 0.2)) * np.float32(kind == "clt")
        b_dec_D = numbers(f"{name} b_dec {layer}", (width,), 0.3 * narrow)
        if inputs_LPD is not None:
            # Between two neighbours, so that rounding decides about none.
            above_N = np.sort((inputs_LPD[layer, 1:] @ w_enc_FD.T + b_enc_F - threshold_F).ravel())
            wanted = active * (inputs_LPD.shape[1] - 1)
            b_enc_F -= (above_N[-wanted] + above_N[-wanted - 1]) / 2
        if kind == "clt":
            encoder = {
                f"W_enc_{layer}": w_enc_FD,
                f"b_enc_{layer}": b_enc_F,
                f"b_dec_{layer}": b_dec_D,
                f"threshold_{layer}": threshold_F,
            }
            scale = 0.3 * narrow * (LAYERS / layers) ** 0.5
            decoder = numbers(f"{name} dec {layer}", (features, layers - layer, width), scale)
            save_file(encoder, folder / f"W_enc_{layer}.safetensors")
            save_file({f"W_dec_{layer}": decoder}, folder / f"W_dec_{layer}.safetensors")
        else:
            state = {
                "W_enc": w_enc_FD,
                "b_enc": b_enc_F,
                "W_dec": numbers(f"{name} dec {layer}", (features, width), 0.3 * narrow),
                "b_dec": b_dec_D,
                "W_skip": numbers(f"{name} skip {layer}", (width, width), 0.2 * narrow),
            }
            save_file(state, folder / f"layer_{layer}.safetensors")
    model_kind = "cross_layer_transcoder" if kind == "clt" else "transcoder_set"
    (folder / "config.yaml").write_text(
        f"model_name: {family}\nmodel_kind: {model_kind}\n"
        "feature_input_hook: mlp.hook_in\nfeature_output_hook: hook_mlp_out\n"
    )
