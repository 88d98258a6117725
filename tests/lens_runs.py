"""One model by TransformerLens and by the service's backend, with what each names its parts."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from weft_activations.adapters.transformers_backend import TransformersBackend
from weft_activations.core.components import component_at, lens_name
from weft_activations.core.hooks import expand_hooks

__all__ = ["captured", "from_lens", "lens_cache"]


def lens_cache(folder: Path, model_class: Any, ids: list[int], *, processed: bool) -> dict[str, Any]:
    """Run TransformerLens over the same weights; arrays in float64, by its own names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformer_lens.model_bridge import TransformerBridge
    own = model_class.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    bridge = TransformerBridge.boot_transformers(
        str(folder), hf_model=own, tokenizer=AutoTokenizer.from_pretrained(folder), device="cpu", dtype=torch.float32
    )
    bridge.enable_compatibility_mode(no_processing=not processed, disable_warnings=True)
    with torch.no_grad():
        logits, cache = bridge.run_with_cache(torch.tensor([ids]))
    found = {name: value[0].numpy().astype(np.float64) for name, value in cache.items() if value.dim() > 1}
    return found | {"logits": logits[0].numpy().astype(np.float64)}


def captured(folder: Path, ids: list[int]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return every component, and the names that TransformerLens has for them."""
    backend = TransformersBackend(folder.parent)
    info = backend.describe(folder.name)
    found = backend.forward(folder.name, ids, list(expand_hooks(info.components, info)))
    return found, {name: lens_name(name, info.components) for name in found}


def from_lens(name: str, value: Any) -> Any:
    """Put TransformerLens's dims into the order of ours."""
    dims = component_at(name).dims
    if dims in ("HPE", "KPE", "HPD"):
        return value.transpose(1, 0, 2)
    return value[..., 0] if dims == "P" else value
