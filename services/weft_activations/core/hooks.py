"""
Names of the places in a forward pass as callers write them, and the shapes of what lies there.

A hook is the name of a component: `embed`, `layers.3.mlp_out`; or its name in TransformerLens: `blocks.3.hook_mlp_out`.
"""

import re
from collections.abc import Iterable

from weft_activations.core.components import (
    ARCHITECTURES,
    MODEL_COMPONENTS,
    component_at,
    component_patterns,
    lens_name,
)
from weft_activations.core.ports import ModelInfo
from weft_common.errors import InvalidArgumentError, UnimplementedError, WeftError

__all__ = [
    "INPUT_HOOKS",
    "OUTPUT_HOOKS",
    "expand_hooks",
    "hook_shape",
]

INPUT_HOOKS = ("mlp_in", "resid_mid")
OUTPUT_HOOKS = ("mlp_out",)
_LAYER = re.compile(r"((?:encoder\.|decoder\.)?)(layers|blocks)\.(\*|0|[1-9][0-9]{0,5})\.(.+)")


def expand_hooks(hooks: Iterable[str], info: ModelInfo, *, field: str = "") -> dict[str, str]:
    """
    Replace `*` by every layer, in the order asked, each hook once.

    Args:
        hooks: Names as callers write them.
        info: The model.
        field: Where they stand in the request; `hooks[{index}]` where it is empty.

    Returns:
        The component's own name by the name that the caller gave, with the layer.

    Raises:
        InvalidArgumentError: There is no such hook or no such layer.
        UnimplementedError: This model has it, but what runs the model here does not show it.
    """
    expanded: dict[str, str] = {}
    for index, hook in enumerate(hooks):
        place = field or f"hooks[{index}]"
        match = _LAYER.fullmatch(hook)
        if match is None:
            name = _model_name(hook, info)
            if name not in info.components:
                raise _unknown(hook, name, info, place)
            expanded[hook] = name
            continue
        stack, layers, chosen, rest = match.groups()
        name = rest if layers == "layers" else _by_lens_name(f"blocks.*.{rest}", info).removeprefix("layers.*.")
        if f"{stack}layers.*.{name}" not in info.components:
            raise _unknown(hook, f"{stack}layers.*.{name}", info, place)
        num_layers = info.speech.num_layers if info.speech is not None and stack == "encoder." else info.num_layers
        if chosen != "*":
            _check_layer(int(chosen), num_layers, place)
        for layer in range(num_layers) if chosen == "*" else (int(chosen),):
            expanded[f"{stack}{layers}.{layer}.{rest}"] = f"{stack}layers.{layer}.{name}"
    if not expanded:
        raise InvalidArgumentError(
            f"no hooks were asked for; name at least one of {', '.join(info.components)}", field="hooks"
        )
    return expanded


def hook_shape(hook: str, info: ModelInfo, positions: int) -> tuple[int, ...]:
    """Tell the shape of a capture, in the order of its component's dims; `logits` are of the last position."""
    sizes = {
        "P": positions,
        "D": info.d_model,
        "H": info.num_heads,
        "K": info.num_kv_heads,
        "E": info.d_head,
        "M": info.d_mlp,
        "V": info.vocab_size,
    }
    if info.speech is not None:
        sizes |= {"F": info.speech.num_frames, "S": info.speech.num_steps, "N": info.speech.num_mel_bins}
        if hook.startswith("encoder."):
            heads = info.speech.num_heads
            sizes |= {"H": heads, "K": heads, "E": info.d_model // heads, "M": info.speech.d_mlp}
    return tuple(sizes[dim] for dim in component_at(hook).dims)


def _model_name(hook: str, info: ModelInfo) -> str:
    return hook if hook in MODEL_COMPONENTS or hook in info.components else _by_lens_name(hook, info)


def _by_lens_name(lens: str, info: ModelInfo) -> str:
    """Return the component of a model that TransformerLens calls so, shown or not; empty where there is none."""
    names = component_patterns(info.architecture) if info.shown_in_part else info.components
    return next((name for name in names if lens and lens_name(name, names) == lens), "")


def _unknown(hook: str, pattern: str, info: ModelInfo, field: str) -> WeftError:
    if info.architecture in ARCHITECTURES and pattern in component_patterns(info.architecture) and info.shown_in_part:
        return UnimplementedError(
            f"what runs {info.model_id} here does not show {hook[:80]!r}; it shows {', '.join(info.components)}. Send "
            "the call to a replica with WEFT_ACTIVATIONS_BACKEND=transformers, which does",
            field=field,
        )
    return InvalidArgumentError(
        f"there is no hook {hook[:80]!r} in {info.architecture}; this model has {', '.join(info.components)}",
        field=field,
    )


def _check_layer(layer: int, num_layers: int, field: str) -> None:
    if layer >= num_layers:
        raise InvalidArgumentError(
            f"there is no layer {layer}; this model has {num_layers} layers, 0 to {num_layers - 1}", field=field
        )
