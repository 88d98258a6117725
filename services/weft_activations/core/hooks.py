"""
Names of the places in a forward pass, and what lies there.

Legend: P positions, D d_model, H query heads, V vocabulary.
A hook is `embed`, `ln_final.scale`, `resid_final`, `logits`, or `layers.{l}.X` with X of `LAYER_HOOKS`.
"""

import re
from collections.abc import Iterable, Sequence

from weft_common.errors import InvalidArgumentError

__all__ = [
    "INPUT_HOOKS",
    "INTERVENTION_HOOKS",
    "LAYER_HOOKS",
    "MODEL_HOOKS",
    "OUTPUT_HOOKS",
    "expand_hooks",
    "hook_patterns",
    "hook_shape",
    "parse_hook",
]

MODEL_HOOKS = ("embed", "ln_final.scale", "resid_final", "logits")
LAYER_HOOKS = (
    "resid_pre",
    "ln1.scale",
    "attn.pattern",
    "attn_out",
    "resid_mid",
    "ln2.scale",
    "mlp_in",
    "mlp_out",
    "resid_post",
)
INTERVENTION_HOOKS = ("mlp_out", "resid_pre", "resid_mid", "resid_post")
INPUT_HOOKS = ("mlp_in", "resid_mid")
OUTPUT_HOOKS = ("mlp_out",)
_LAYER = re.compile(r"layers\.(\*|0|[1-9][0-9]{0,5})\.(.+)")


def hook_patterns() -> list[str]:
    """List what a capture takes, with `*` for the layer."""
    return [*MODEL_HOOKS, *(f"layers.*.{name}" for name in LAYER_HOOKS)]


def parse_hook(hook: str, num_layers: int, *, field: str, among: Sequence[str] = LAYER_HOOKS) -> tuple[int, str]:
    """
    Take a layer's hook apart.

    Raises:
        InvalidArgumentError: There is no such hook or no such layer.

    >>> parse_hook("layers.3.mlp_out", 12, field="hook")
    (3, 'mlp_out')
    """
    match = _LAYER.fullmatch(hook)
    if match is None or match[2] not in among or match[1] == "*":
        raise InvalidArgumentError(
            f"{hook[:80]!r} is not a hook that can stand here; expected layers.{{l}}.X with X one of "
            f"{', '.join(among)}",
            field=field,
        )
    layer = int(match[1])
    _check_layer(layer, num_layers, field)
    return layer, match[2]


def expand_hooks(hooks: Iterable[str], num_layers: int) -> list[str]:
    """
    Replace `*` by every layer, in the order asked, each hook once.

    Raises:
        InvalidArgumentError: There is no such hook or no such layer.

    >>> expand_hooks(["embed", "layers.*.mlp_in", "layers.0.mlp_in"], 2)
    ['embed', 'layers.0.mlp_in', 'layers.1.mlp_in']
    """
    expanded: dict[str, None] = {}
    for index, hook in enumerate(hooks):
        field = f"hooks[{index}]"
        if hook in MODEL_HOOKS:
            expanded[hook] = None
            continue
        match = _LAYER.fullmatch(hook)
        if match is None or match[2] not in LAYER_HOOKS:
            raise InvalidArgumentError(
                f"there is no hook {hook[:80]!r}; this model has {', '.join(hook_patterns())}", field=field
            )
        if match[1] == "*":
            expanded.update((f"layers.{layer}.{match[2]}", None) for layer in range(num_layers))
        else:
            _check_layer(int(match[1]), num_layers, field)
            expanded[hook] = None
    if not expanded:
        raise InvalidArgumentError(
            f"no hooks were asked for; name at least one of {', '.join(hook_patterns())}", field="hooks"
        )
    return list(expanded)


def hook_shape(hook: str, *, positions: int, d_model: int, num_heads: int, vocab_size: int) -> tuple[int, ...]:
    """Tell the shape of a capture: [P, D], scales [P], patterns [H, P, P], logits [V] of the last position."""
    if hook == "logits":
        return (vocab_size,)
    if hook.endswith(".scale"):
        return (positions,)
    if hook.endswith("attn.pattern"):
        return (num_heads, positions, positions)
    return (positions, d_model)


def _check_layer(layer: int, num_layers: int, field: str) -> None:
    if layer >= num_layers:
        raise InvalidArgumentError(
            f"there is no layer {layer}; this model has {num_layers} layers, 0 to {num_layers - 1}", field=field
        )
