"""
One forward pass of transformers' own model in which every component can be read, changed and held.

The model runs as it is. Where a component is wanted, changed or held, a hook stands on the module that it lies at, for
the length of this pass; nothing stands anywhere else.

Legend: B sequences, P positions, D d_model.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from weft_activations.adapters.changed import changed
from weft_activations.adapters.open_attention import OPEN, visited
from weft_activations.adapters.places import Located, Norm, OpenAttention, Place, Result, Site
from weft_activations.adapters.torch_blocks import norm_scale, normalize
from weft_activations.core.calls import current_call
from weft_activations.core.ports import Freeze, Intervention

__all__ = ["held_hooks", "run_pass"]


def held_hooks(freeze: Freeze, components: Collection[str]) -> list[str]:
    """List what a clean pass must record so that a second one can hold it; `components` with their layers."""
    ends: list[str] = []
    if freeze.attention_patterns:
        ends += [".attn.pattern", ".cross.pattern"]
    if freeze.norm_scales:
        ends += [".scale"]
    if freeze.mlp_outputs:
        ends += [".mlp_out"]
    return [name for name in components if name.endswith(tuple(ends))]


def run_pass(
    located: Located,
    tokens_BP: Tensor,
    wanted: Collection[str],
    *,
    interventions: Sequence[Intervention] = (),
    held: Mapping[str, Tensor] | None = None,
    take: Callable[[str, Tensor], None] | None = None,
    cache: Any = None,
    features_BNS: Tensor | None = None,
) -> dict[str, Tensor]:
    """
    Run a pass and return the wanted hooks.

    Args:
        located: The model.
        tokens_BP: Token ids.
        wanted: Hooks to keep, with layer indices.
        interventions: Applied in order, on top of what is held.
        held: Values from a clean pass, by hook.
        take: Takes what lies at each wanted hook as soon as it is there; nothing is returned then.
        cache: Keys and values of the tokens before these, and of these from then on.

    Raises:
        CancelledError: Nobody waits for the pass any more; told at the next component that it touches.
    """
    taps = _Taps(wanted, interventions, held or {}, take)
    with ExitStack() as standing:
        if _set_attention(located, taps):
            standing.enter_context(visited(_visit_of(located, taps)))
        for name, place in located.places.items():
            if taps.touches(name):
                for handle in _stand(name, place, taps):
                    standing.callback(handle.remove)
        all_logits = "logits_all" in wanted or taps.touches("logits_uncapped")
        logits_BPV = located.call(located.model, tokens_BP, all_logits, cache, features_BNS)
    if logits_BPV is not None:
        taps.visit("logits", logits_BPV[:, -1])
        taps.visit("logits_all", logits_BPV)
    return taps.kept


class _Taps:
    """What is done in one pass, and what it kept."""

    def __init__(
        self,
        wanted: Collection[str],
        interventions: Sequence[Intervention],
        held: Mapping[str, Tensor],
        take: Callable[[str, Tensor], None] | None,
    ) -> None:
        self.kept: dict[str, Tensor] = {}
        self._take = take or self.kept.__setitem__
        self._wanted = set(wanted)
        self._held = held
        self._changes: dict[str, list[Intervention]] = {}
        for intervention in interventions:
            self._changes.setdefault(intervention.name, []).append(intervention)

    def touches(self, name: str) -> bool:
        return name in self._wanted or name in self._held or name in self._changes

    def visit(self, name: str, value: Tensor) -> Tensor:
        """Hold, change and keep what lies at a component; returns what goes on, the same tensor where nothing is."""
        current_call().check()
        value = self._held.get(name, value)
        for intervention in self._changes.get(name, ()):
            value = changed(value, intervention)
        if name in self._wanted:
            self._take(name, value)
        return value


def _set_attention(located: Located, taps: _Taps) -> bool:
    is_open = located.always_open or any(
        taps.touches(name) for inner in located.open_modules.values() for name in inner.values()
    )
    wanted = OPEN if is_open else "sdpa"
    if located.model.config._attn_implementation != wanted:
        located.model.set_attn_implementation(wanted)
    return is_open


def _visit_of(located: Located, taps: _Taps) -> Callable[[nn.Module, str, Tensor], Tensor]:
    def visit(module: nn.Module, inner: str, value: Tensor) -> Tensor:
        name = located.open_modules[module].get(inner)
        return value if name is None else taps.visit(name, value)

    return visit


def _stand(name: str, place: Place, taps: _Taps) -> list[Any]:
    match place:
        case Site(is_input=True):
            return [place.module.register_forward_pre_hook(_input_hook(name, place, taps), with_kwargs=True)]
        case Site():
            return [place.module.register_forward_hook(_output_hook(name, place, taps))]
        case Norm():
            return [place.module.register_forward_hook(_norm_hook(name, place, taps))]
        case Result():
            return [place.projection.register_forward_hook(_result_hook(name, place, taps))]
        case OpenAttention():
            return []


def _input_hook(name: str, site: Site, taps: _Taps) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given: Tensor = args[0] if args else kwargs["hidden_states"]
        found = site.view.read(given)
        value = taps.visit(name, found)
        if value is found:
            return None
        if site.in_place:
            given.copy_(site.view.write(given, value))
            return None
        new = site.view.write(given, value)
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    return hook


def _output_hook(name: str, site: Site, taps: _Taps) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        returned: Tensor = output[0] if isinstance(output, tuple) else output
        found = site.view.read(returned)
        value = taps.visit(name, found)
        if value is found:
            return None
        new = site.view.write(returned, value)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    return hook


def _norm_hook(name: str, norm: Norm, taps: _Taps) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        found_BP = norm_scale(module, args[0])
        scale_BP = taps.visit(name, found_BP)
        if scale_BP is found_BP:
            return None
        return normalize(module, args[0], scale_BP, weight_offset=norm.weight_offset)

    return hook


def _result_hook(name: str, result: Result, taps: _Taps) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        found_BHPD = result.heads(args[0])
        value_BHPD = taps.visit(name, found_BHPD)
        return None if value_BHPD is found_BHPD else result.total(value_BHPD)

    return hook
