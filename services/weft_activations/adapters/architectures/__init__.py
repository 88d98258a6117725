"""Where each architecture has its modules; one file a family. What is done there, `hooked_pass` knows."""

from collections.abc import Callable
from typing import Any

from weft_activations.adapters.architectures.bert import locate_bert
from weft_activations.adapters.architectures.gemma import locate_gemma
from weft_activations.adapters.architectures.gpt2 import locate_gpt2
from weft_activations.adapters.architectures.gpt_neox import locate_gpt_neox
from weft_activations.adapters.architectures.llama import locate_llama
from weft_activations.adapters.architectures.whisper import locate_whisper
from weft_activations.adapters.places import Located

__all__ = ["locate"]

_FAMILIES: dict[str, Callable[[Any], Located]] = {
    "GPT2LMHeadModel": locate_gpt2,
    "LlamaForCausalLM": locate_llama,
    "MistralForCausalLM": locate_llama,
    "Qwen2ForCausalLM": locate_llama,
    "Qwen3ForCausalLM": locate_llama,
    "Gemma2ForCausalLM": locate_gemma,
    "Gemma3ForCausalLM": locate_gemma,
    "GPTNeoXForCausalLM": locate_gpt_neox,
    "BertModel": locate_bert,
    "BertForMaskedLM": locate_bert,
    "RobertaModel": locate_bert,
    "RobertaForMaskedLM": locate_bert,
    "WhisperForConditionalGeneration": locate_whisper,
}


def locate(model: Any) -> Located:
    """Find the components of a model of one of `components.ARCHITECTURES` or `components.SPEECH`."""
    return _FAMILIES[type(model).__name__](model)
