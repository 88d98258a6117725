"""
One instrumented forward pass: every hook can be read, the interventions are applied where they stand, parts are held.

The loop is ours, the modules are transformers' own, so what is captured is what the model computes; that the logits
are the model's own is tested against transformers' forward.

Legend: B sequences, P positions, L layers, D d_model.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from weft_activations.adapters.torch_blocks import Parts, norm_scale, normalize
from weft_activations.core.ports import Freeze, Intervention, InterventionKind

__all__ = ["held_hooks", "run_pass", "run_streams"]


def held_hooks(freeze: Freeze, num_layers: int) -> list[str]:
    """List what a clean pass must record so that a second one can hold it."""
    names = []
    if freeze.attention_patterns:
        names += [f"layers.{layer}.attn.pattern" for layer in range(num_layers)]
    if freeze.norm_scales:
        names += [f"layers.{layer}.{norm}.scale" for layer in range(num_layers) for norm in ("ln1", "ln2")]
        names += ["ln_final.scale"]
    if freeze.mlp_outputs:
        names += [f"layers.{layer}.mlp_out" for layer in range(num_layers)]
    return names


def run_pass(
    parts: Parts,
    tokens_BP: Tensor,
    wanted: Collection[str],
    *,
    eager: bool,
    interventions: Sequence[Intervention] = (),
    held: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """
    Run a pass and return the wanted hooks.

    Args:
        parts: The model.
        tokens_BP: Token ids.
        wanted: Hooks to keep, with layer indices.
        eager: Whether the attention modules return their patterns.
        interventions: Applied in order, on top of what is held.
        held: Values from a clean pass, by hook.
    """
    held = held or {}
    kept: dict[str, Tensor] = {}
    by_hook: dict[str, list[Intervention]] = {}
    for intervention in interventions:
        by_hook.setdefault(f"layers.{intervention.layer}.{intervention.hook}", []).append(intervention)

    def keep(name: str, value: Tensor) -> None:
        if name in wanted:
            kept[name] = value

    def at(name: str, value: Tensor) -> Tensor:
        for intervention in by_hook.get(name, ()):
            value = _changed(value, intervention)
        keep(name, value)
        return value

    x_BPD = parts.embed(tokens_BP)
    keep("embed", x_BPD)
    positions = tokens_BP.shape[1]
    for layer, block in enumerate(parts.blocks):
        name = f"layers.{layer}."
        x_BPD = at(name + "resid_pre", x_BPD)
        scale_BP = held.get(name + "ln1.scale")
        if name + "ln1.scale" in wanted:
            keep(name + "ln1.scale", norm_scale(block.ln1, x_BPD) if scale_BP is None else scale_BP)
        normed_BPD = normalize(block.ln1, x_BPD, scale_BP)
        pattern_BHPP = held.get(name + "attn.pattern")
        if pattern_BHPP is None:
            attn_out_BPD, pattern_BHPP = block.attend(normed_BPD, block.mask(positions, eager=eager))
        else:
            attn_out_BPD = block.attend_with(normed_BPD, pattern_BHPP)
        if pattern_BHPP is not None:
            keep(name + "attn.pattern", pattern_BHPP)
        keep(name + "attn_out", attn_out_BPD)
        x_BPD = at(name + "resid_mid", x_BPD + attn_out_BPD)
        scale_BP = held.get(name + "ln2.scale")
        if name + "ln2.scale" in wanted:
            keep(name + "ln2.scale", norm_scale(block.ln2, x_BPD) if scale_BP is None else scale_BP)
        mlp_in_BPD = normalize(block.ln2, x_BPD, scale_BP)
        keep(name + "mlp_in", mlp_in_BPD)
        mlp_out_BPD = held.get(name + "mlp_out")
        if mlp_out_BPD is None:
            mlp_out_BPD = block.mlp(mlp_in_BPD)
        mlp_out_BPD = at(name + "mlp_out", mlp_out_BPD)
        x_BPD = at(name + "resid_post", x_BPD + mlp_out_BPD)
    keep("resid_final", x_BPD)
    if "ln_final.scale" in wanted or "logits" in wanted:
        scale_BP = held.get("ln_final.scale")
        keep("ln_final.scale", norm_scale(parts.final_norm, x_BPD) if scale_BP is None else scale_BP)
        if "logits" in wanted:
            last_scale = None if scale_BP is None else scale_BP[:, -1:]
            keep("logits", parts.unembed(normalize(parts.final_norm, x_BPD[:, -1:], last_scale))[:, 0])
    return kept


def run_streams(
    parts: Parts, tokens_BP: Tensor, input_hook: str, output_hook: str, write: Callable[[int, Tensor, Tensor], None]
) -> None:
    """
    Run a pass for two hooks of every layer: no patterns, no final norm, no unembedding.

    Args:
        parts: The model.
        tokens_BP: Token ids.
        input_hook: The first hook, without the layer.
        output_hook: The second.
        write: Takes a layer and what lies at its two hooks, [B, P, D] each.

    Raises:
        KeyError: A hook that a harvest does not take.
    """
    x_BPD = parts.embed(tokens_BP)
    for layer, block in enumerate(parts.blocks):
        attn_out_BPD, _ = block.attend(block.ln1(x_BPD), block.mask(tokens_BP.shape[1], eager=False))
        x_BPD = x_BPD + attn_out_BPD
        mlp_in_BPD = block.ln2(x_BPD)
        mlp_out_BPD = block.mlp(mlp_in_BPD)
        found = {"mlp_in": mlp_in_BPD, "resid_mid": x_BPD, "mlp_out": mlp_out_BPD}
        write(layer, found[input_hook], found[output_hook])
        x_BPD = x_BPD + mlp_out_BPD


def _changed(value_BPD: Tensor, intervention: Intervention) -> Tensor:
    positions = list(intervention.positions) or list(range(value_BPD.shape[1]))
    there = value_BPD[:, positions]
    if intervention.kind is InterventionKind.SCALE:
        new = there * intervention.factor
    elif intervention.kind is InterventionKind.ABLATE:
        new = torch.zeros_like(there)
    else:
        given = torch.as_tensor(intervention.value).to(dtype=value_BPD.dtype, device=value_BPD.device)
        new = there + given if intervention.kind is InterventionKind.ADD else given.expand_as(there)
    changed_BPD = value_BPD.clone()
    changed_BPD[:, positions] = new
    return changed_BPD
