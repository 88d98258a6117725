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
_LAYER = re.compile(r"(layers|blocks)\.(\*|0|[1-9][0-9]{0,5})\.(.+)")


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
        name = _layer_name(match, info)
        if f"layers.*.{name}" not in info.components:
            raise _unknown(hook, f"layers.*.{name}", info, place)
        if match[2] != "*":
            _check_layer(int(match[2]), info.num_layers, place)
        for layer in range(info.num_layers) if match[2] == "*" else (int(match[2]),):
            expanded[f"{match[1]}.{layer}.{match[3]}"] = f"layers.{layer}.{name}"
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
    return tuple(sizes[dim] for dim in component_at(hook).dims)


def _layer_name(match: re.Match[str], info: ModelInfo) -> str:
    if match[1] == "layers":
        return match[3]
    return _by_lens_name(f"blocks.*.{match[3]}", info).removeprefix("layers.*.")


def _model_name(hook: str, info: ModelInfo) -> str:
    return hook if hook in MODEL_COMPONENTS else _by_lens_name(hook, info)


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
