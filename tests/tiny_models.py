"""
Tiny random models as real Hugging Face folders, with a real byte-level tokenizer, for any test that needs a model.

    make_llama(folder)   Llama with grouped-query attention
    make_gpt2(folder)    GPT-2 with biases and learned positions
    make_model(folder)   any architecture of FAMILIES, by its name there
    make_encoder(folder) any of ENCODERS, by its name there
    make_whisper(folder) Whisper, which hears one second in 100 steps of 16 mel bins

Weights are drawn from the seed; norm weights and biases are moved off 1 and 0, so that a part that forgets them fails.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaForMaskedLM,
    RobertaModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)
from transformers import PreTrainedTokenizerFast as FastTokenizer

_TEXT = (
    "The capital of France is Paris. The capital of Italy is Rome. A model reads text and says what comes next. "
    "Features of one layer write to every layer above it. "
) * 4
_BOS = "<|start|>"
_GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "gpt2": ("gpt2", {"n_inner": 48}),
    "llama": ("llama", {"num_key_value_heads": 2}),
    "mistral": ("mistral", {"sliding_window": 4, **_GROUPED}),
    "qwen2": ("qwen2", {"num_key_value_heads": 2}),
    "qwen3": ("qwen3", _GROUPED),
    "gemma2": ("gemma2", {**_GROUPED, "query_pre_attn_scalar": 8, "sliding_window": 4, "final_logit_softcapping": 5.0}),
    "gemma3": (
        "gemma3_text",
        {**_GROUPED, "query_pre_attn_scalar": 8, "sliding_window": 4, "sliding_window_pattern": 2},
    ),
    "neox": ("gpt_neox", {"use_parallel_residual": True}),
    "neox-serial": ("gpt_neox", {"use_parallel_residual": False}),
}
"""By a name of ours, the model type and what its configuration has besides the sizes."""
ENCODERS: dict[str, tuple[type[PreTrainedModel], dict[str, object]]] = {
    "bert": (BertModel, {"pad_token_id": 0}),
    "bert-masked": (BertForMaskedLM, {"pad_token_id": 0}),
    "roberta": (RobertaModel, {"pad_token_id": 1, "max_position_embeddings": 130}),
    "roberta-masked": (RobertaForMaskedLM, {"pad_token_id": 1, "max_position_embeddings": 130}),
}
"""By a name of ours, the class and what its configuration has besides the sizes."""


def make_llama(
    folder: Path,
    *,
    num_layers: int = 3,
    d_model: int = 32,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    d_mlp: int = 64,
    max_tokens: int = 128,
    tie_embeddings: bool = False,
    add_bos: bool = False,
    seed: int = 0,
) -> Path:
    """Make a Llama folder and return its path."""
    vocab_size = _make_tokenizer(folder, add_bos=add_bos)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=d_model,
        intermediate_size=d_mlp,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        max_position_embeddings=max_tokens,
        tie_word_embeddings=tie_embeddings,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return _save(LlamaForCausalLM, config, folder, seed)


def make_gpt2(
    folder: Path,
    *,
    num_layers: int = 3,
    d_model: int = 32,
    num_heads: int = 4,
    d_mlp: int = 64,
    max_tokens: int = 128,
    add_bos: bool = False,
    seed: int = 0,
) -> Path:
    """Make a GPT-2 folder and return its path."""
    vocab_size = _make_tokenizer(folder, add_bos=add_bos)
    config = GPT2Config(
        vocab_size=vocab_size,
        n_embd=d_model,
        n_inner=d_mlp,
        n_layer=num_layers,
        n_head=num_heads,
        n_positions=max_tokens,
        bos_token_id=0,
        eos_token_id=0,
    )
    return _save(GPT2LMHeadModel, config, folder, seed)


def make_model(folder: Path, family: str, *, num_layers: int = 3, seed: int = 0, **fields: object) -> Path:
    """Make a folder of one of FAMILIES and return its path: d_model 32, 4 heads, d_mlp 48, and fields instead."""
    model_type, others = FAMILIES[family]
    sizes = {"hidden_size": 32, "num_hidden_layers": num_layers, "num_attention_heads": 4, "intermediate_size": 48}
    config = AutoConfig.for_model(
        model_type,
        **{
            "vocab_size": _make_tokenizer(folder, add_bos=False),
            "max_position_embeddings": 128,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": 0,
            **(sizes if model_type != "gpt2" else {k: v for k, v in sizes.items() if k != "intermediate_size"}),
            **others,
            **fields,
        },
    )
    return _save(type(AutoModelForCausalLM.from_config(config)), config, folder, seed)


def make_encoder(folder: Path, family: str, *, num_layers: int = 3, seed: int = 0) -> Path:
    """Make a folder of one of ENCODERS and return its path: d_model 32, 4 heads, d_mlp 48, 128 positions."""
    model_class, others = ENCODERS[family]
    settings: dict[str, Any] = {
        "vocab_size": _make_tokenizer(folder, add_bos=True),
        "hidden_size": 32,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 128,
        **others,
    }
    return _save(model_class, model_class.config_class(**settings), folder, seed)


def make_whisper(folder: Path, *, seed: int = 0) -> Path:
    """Make a Whisper folder and return its path: 2 layers of 2 heads read frames, 3 layers of 4 heads tokens."""
    config = WhisperConfig(
        vocab_size=_make_tokenizer(folder, add_bos=True),
        num_mel_bins=16,
        d_model=32,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=40,
        decoder_layers=3,
        decoder_attention_heads=4,
        decoder_ffn_dim=48,
        max_source_positions=50,
        max_target_positions=64,
        decoder_start_token_id=0,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    WhisperFeatureExtractor(feature_size=16, chunk_length=1).save_pretrained(folder)
    return _save(WhisperForConditionalGeneration, config, folder, seed)


def _make_tokenizer(folder: Path, *, add_bos: bool) -> int:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[_BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_TEXT], trainer)
    if add_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{_BOS} $A", special_tokens=[(_BOS, 0)])
    folder.mkdir(parents=True, exist_ok=True)
    FastTokenizer(tokenizer_object=tokenizer, bos_token=_BOS, eos_token=_BOS).save_pretrained(folder)
    return int(tokenizer.get_vocab_size())


def _save(model_class: type[PreTrainedModel], config: PreTrainedConfig, folder: Path, seed: int) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.5 / parameter.shape[-1] ** 0.5 if "emb" not in name else 0.5)
                else:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
        model.save_pretrained(folder)
    return folder
