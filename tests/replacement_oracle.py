"""The replacement model beside transformers' own: hooks on its MLPs, one sequence at a time, with torch's losses."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from weft_trainer.worker.model_passes import HeldOut

Reconstruct = Callable[[int, list[Tensor]], Tensor]
"""Makes the output of a layer from the inputs of the layers up to it."""


def zeros(layer: int, inputs: list[Tensor]) -> Tensor:
    """Ablate."""
    return torch.zeros_like(inputs[0])


@contextmanager
def mlps_replaced(model: Any, layers: Sequence[int], reconstruct: Reconstruct, kept: Tensor) -> Iterator[None]:
    """Replace the outputs of some layers but for the tokens that are kept."""
    seen: list[Tensor] = []

    def hook(layer: int) -> Callable[..., Tensor]:
        def replace(module: Any, args: tuple[Tensor], output: Tensor) -> Tensor:
            seen.append(args[0])
            return torch.where(kept[..., None], output, reconstruct(layer, seen)) if layer in layers else output

        return replace

    handles = [block.mlp.register_forward_hook(hook(layer)) for layer, block in enumerate(model.model.layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def left_out(model: Any, tokens: Tensor, limits: np.ndarray[Any, Any]) -> Tensor:
    """Which tokens the harvest left out: the first, and where an output's norm reaches a layer's limit, if any."""
    kept = torch.zeros_like(tokens, dtype=torch.bool)
    kept[:, 0] = True
    if not limits.size:
        return kept

    def hook(layer: int) -> Callable[..., None]:
        def look(module: Any, args: tuple[Tensor], output: Tensor) -> None:
            kept.logical_or_(output.norm(dim=-1) >= limits[layer])

        return look

    handles = [block.mlp.register_forward_hook(hook(layer)) for layer, block in enumerate(model.model.layers)]
    model(tokens)
    for handle in handles:
        handle.remove()
    return kept


@torch.no_grad()
def oracle(model: Any, held_out: HeldOut, layers: Sequence[int], reconstruct: Reconstruct) -> dict[str, float]:
    """Score one sequence after the other."""
    sums = dict.fromkeys(("tokens", "model", "cross_entropy", "kl_divergence", "top1_agreement", "ablated"), 0.0)
    for sequence, skipped in zip(held_out.sequences, held_out.skipped or [()] * len(held_out.sequences), strict=True):
        tokens = torch.tensor([sequence])
        kept = left_out(model, tokens, held_out.output_norm_limits)
        for position in skipped:
            kept[0, position] = True
        clean = model(tokens).logits[0, :-1]
        with mlps_replaced(model, layers, reconstruct, kept):
            changed = model(tokens).logits[0, :-1]
        with mlps_replaced(model, layers, zeros, kept):
            ablated = model(tokens).logits[0, :-1]
        scored = ~kept[0, :-1]
        following = tokens[0, 1:][scored]
        losses = [
            float(torch.nn.functional.cross_entropy(each[scored], following, reduction="sum"))
            for each in (clean, changed, ablated)
        ]
        divergence = torch.nn.functional.kl_div(
            changed.log_softmax(-1), clean.log_softmax(-1), log_target=True, reduction="none"
        )
        sums["tokens"] += int(scored.sum())
        sums["model"] += losses[0]
        sums["cross_entropy"] += losses[1]
        sums["ablated"] += losses[2]
        sums["kl_divergence"] += float(divergence[scored].sum())
        sums["top1_agreement"] += int((clean.argmax(-1) == changed.argmax(-1))[scored].sum())
    return {name: value if name == "tokens" else value / sums["tokens"] for name, value in sums.items()}


def check(found: dict[str, Any], wanted: dict[str, float], rel: float = 2e-4) -> None:
    """Compare a ReplacementScore's fields with the oracle's."""
    assert found["top1_agreement"] == pytest.approx(wanted["top1_agreement"])
    for name in ("cross_entropy", "kl_divergence"):
        assert found[name] == pytest.approx(wanted[name], rel=rel)
    assert found["ablated_cross_entropy"] == pytest.approx(wanted["ablated"], rel=rel)
    recovered = (wanted["ablated"] - wanted["cross_entropy"]) / (wanted["ablated"] - wanted["model"])
    assert found["recovered"] == pytest.approx(recovered, rel=1e-2)
