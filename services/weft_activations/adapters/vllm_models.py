"""
The models of vLLM's that can be captured from.

vLLM starts a Python of its own to look at a class of a model that is not there yet, so that the one who asks has not
touched a GPU. The classes are told to it here instead: a start takes some seconds less on every rank.
"""

from importlib import import_module

__all__ = ["ARCHITECTURES", "tell_model"]

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
"""By architecture, the module of vLLM's that it is in."""


def tell_model(architecture: str) -> None:
    """Tell vLLM the class of one of `ARCHITECTURES`, in this process."""
    from vllm.model_executor.models.registry import ModelRegistry

    module = import_module(f"vllm.model_executor.models.{ARCHITECTURES[architecture]}")
    ModelRegistry.register_model(architecture, getattr(module, architecture))
