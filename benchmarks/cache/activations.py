"""
Activations of a real model for the benchmarks of the cache, and the bound that a code of them has.

Shapes: L layers, T tokens, D d_model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["Streams", "gaussian_bounds", "take_activations"]

Streams = dict[str, NDArray[np.float32]]


def take_activations(folder: Path, num_sequences: int, sequence_tokens: int) -> Streams:
    """
    Take MLP inputs, residuals before the MLP and MLP outputs of all layers over Python's help topics.

    Args:
        folder: A Hugging Face folder of a model of Llama's kind.

    Returns:
        `mlp_in`, `resid_mid` and `mlp_out`, [L, T, D] each, position 0 of each sequence left out.
    """
    import pydoc_data.topics

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    text = "\n".join(pydoc_data.topics.topics.values())
    tokens = AutoTokenizer.from_pretrained(folder, local_files_only=True)(text)["input_ids"]
    rows = torch.tensor(tokens[: num_sequences * sequence_tokens]).reshape(-1, sequence_tokens)
    taken: dict[str, list[NDArray[np.float32]]] = {"mlp_in": [], "resid_mid": [], "mlp_out": []}
    layers = len(model.model.layers)

    def keep(name: str, tensor: torch.Tensor) -> None:
        taken[name].append(tensor[:, 1:].reshape(-1, tensor.shape[-1]).numpy())

    for layer in model.model.layers:
        layer.post_attention_layernorm.register_forward_hook(lambda _, given, out: keep("resid_mid", given[0]))
        layer.mlp.register_forward_hook(lambda _, given, out: keep("mlp_in", given[0]))
        layer.mlp.register_forward_hook(lambda _, given, out: keep("mlp_out", out))
    with torch.inference_mode():
        for start in range(0, len(rows), 4):
            model.model(rows[start : start + 4])
    return {
        name: np.stack([np.concatenate(parts[layer::layers]) for layer in range(layers)])
        for name, parts in taken.items()
    }


def gaussian_bounds(values_TD: NDArray[np.float32], fvus: Sequence[float]) -> list[float]:
    """Give the bits a value that a Gaussian of this covariance needs at each FVU: reverse water-filling."""
    variances = np.maximum(np.linalg.eigvalsh(np.cov(values_TD.astype(np.float64), rowvar=False, bias=True)), 1e-300)
    bounds = []
    for fvu in fvus:
        low, high = 0.0, float(variances.max())
        for _ in range(200):
            level = (low + high) / 2
            short = np.minimum(variances, level).sum() < fvu * variances.sum()
            low, high = (level, high) if short else (low, level)
        bounds.append(float(np.maximum(0.5 * np.log2(variances / high), 0).mean()))
    return bounds
