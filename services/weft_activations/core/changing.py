"""
Checks the changes that are asked for in a forward pass, and works out those that need another pass first.

What is taken from another prompt, or is a mean over positions, is read in passes without changes and becomes a value
that is set: a backend only ever adds, sets, scales and zeroes.

Legend: P positions of the prompt, S positions of the source, N of the chosen ones.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np

from weft_activations.core.component import Component, position_dim
from weft_activations.core.components import component_at
from weft_activations.core.hooks import expand_hooks, hook_shape
from weft_activations.core.ports import Floats, Intervention, InterventionKind, ModelInfo, ModelInput
from weft_common.errors import InvalidArgumentError, ResourceExhaustedError

__all__ = ["Audio", "Change", "ChangeKind", "Prompt", "work_out"]

_MAX_CHANGES = 4096
_MAX_SOURCES = 8


class ChangeKind(Enum):
    """What is done with what lies at a component."""

    ADD = "add"
    SET = "set"
    SCALE = "scale"
    ABLATE = "ablate"
    MEAN = "mean"
    PATCH = "patch"
    RESAMPLE = "resample"


@dataclass(frozen=True)
class Audio:
    """A recording: a WAV file, or its log-mel features [N, S]."""

    wav: bytes | None = None
    features_NS: Floats | None = None


@dataclass(frozen=True)
class Prompt:
    """What a model reads: text, or token ids as they are; a model of speech reads audio besides."""

    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    audio: Audio | None = None


@dataclass(frozen=True)
class Change:
    """
    An intervention as it was asked for, not yet checked against a model.

    Attributes:
        hook: A component with its layer, by either of its names.
        positions: Where along the first dim of positions, each once; empty means everywhere.
        heads: Which heads, each once; empty means all.
        neurons: Which entries of the last dim, each once; empty means all.
        value: Of ADD and SET, and of MEAN where the mean is given.
        factor: Of SCALE.
        direction: Only what lies along it is changed; of any length but zero.
        source: Of PATCH and RESAMPLE, the other prompt.
        source_positions: Of PATCH, one for each position; empty means the same ones.
        seed: Of RESAMPLE, which positions of the source are drawn.
    """

    hook: str
    kind: ChangeKind
    positions: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    neurons: tuple[int, ...] = ()
    value: Floats | None = None
    factor: float = 0.0
    direction: Floats | None = None
    source: Prompt | None = None
    source_positions: tuple[int, ...] = ()
    seed: int = 0

    @property
    def reads_a_pass(self) -> bool:
        """Whether what is changed is read in another pass first."""
        if self.kind is ChangeKind.MEAN:
            return self.value is None
        return self.kind in (ChangeKind.PATCH, ChangeKind.RESAMPLE)


Read = Callable[[Prompt, str], ModelInput]
"""Checks a prompt, named by its field, and returns what a pass reads."""
Clean = Callable[[ModelInput, Sequence[str]], dict[str, Floats]]
"""Runs a pass without changes and returns hooks."""


def work_out(
    changes: Sequence[Change],
    info: ModelInfo,
    given: ModelInput,
    *,
    read: Read,
    clean: Clean,
    max_held_bytes: int,
) -> list[Intervention]:
    """
    Check changes and make each one that a backend knows.

    Args:
        changes: In the order in which they are made.
        info: The model.
        given: What the pass that is changed reads.
        read: Reads another prompt.
        clean: Runs a prompt without changes.
        max_held_bytes: Most that is read from other passes.

    Raises:
        InvalidArgumentError: A change does not fit the model or the prompt; the message names it.
        ResourceExhaustedError: Too many changes or sources, or passes over them that would hold too much.
    """
    if len(changes) > _MAX_CHANGES:
        raise ResourceExhaustedError(
            f"{len(changes)} interventions were asked for; one pass takes {_MAX_CHANGES} at most", field="interventions"
        )
    num_tokens = len(given.token_ids)
    checked = [_check(change, f"interventions[{i}]", info, num_tokens) for i, change in enumerate(changes)]
    needed: dict[ModelInput, set[str]] = {}
    sources: list[ModelInput | None] = []
    for index, (change, made) in enumerate(zip(changes, checked, strict=True)):
        source = _source(change, f"interventions[{index}]", given, read)
        sources.append(source)
        if source is not None:
            sizes = [_positions(made.hook, info, len(each.token_ids)) for each in (source, given)]
            _check_rows(change, f"interventions[{index}]", sizes[0], sizes[1], made.component)
            needed.setdefault(source, set()).add(made.hook)
    if len(needed) > _MAX_SOURCES:
        raise ResourceExhaustedError(
            f"the interventions read {len(needed)} prompts; one call reads {_MAX_SOURCES} at most",
            field="interventions",
        )
    held = sum(
        4 * math.prod(hook_shape(hook, info, len(each.token_ids))) for each, hooks in needed.items() for hook in hooks
    )
    if held > max_held_bytes:
        raise ResourceExhaustedError(
            f"what the interventions read from other passes would hold {held} bytes, more than the "
            f"{max_held_bytes} that one call may; read fewer components or shorter prompts",
            field="interventions",
        )
    found = {each: clean(each, sorted(hooks)) for each, hooks in needed.items()}
    return [
        made.intervention
        if source is None
        else _taken(change, made, found[source][made.hook], _positions(made.hook, info, num_tokens))
        for change, made, source in zip(changes, checked, sources, strict=True)
    ]


@dataclass(frozen=True)
class _Checked:
    component: Component
    hook: str
    intervention: Intervention


def _positions(hook: str, info: ModelInfo, num_tokens: int) -> int:
    """Return how many positions a component has: tokens, or the frames that an encoder of speech always has."""
    return hook_shape(hook, info, num_tokens)[position_dim(component_at(hook))]


def _check(change: Change, field: str, info: ModelInfo, num_tokens: int) -> _Checked:
    names = list(expand_hooks([change.hook], info, field=f"{field}.hook").values())
    if "*" in change.hook or names[0] in ("logits", "logits_all", "pooled"):
        raise InvalidArgumentError(
            f"{change.hook[:80]!r} is not a hook that can stand here; name one component of one layer, "
            "before the logits and what is pooled",
            field=f"{field}.hook",
        )
    hook, component = names[0], component_at(names[0])
    shape = hook_shape(hook, info, num_tokens)
    _check_indices(change.positions, shape[position_dim(component)], "position", f"{field}.positions", hook)
    num_heads = shape[0] if component.dims[0] in "HK" else 0
    _check_indices(change.heads, num_heads, "head", f"{field}.heads", hook)
    num_entries = shape[-1] if len(shape) > 1 else 0
    _check_indices(change.neurons, num_entries, "neuron", f"{field}.neurons", hook)
    chosen = tuple(len(picked) or size for size, picked in zip(shape, _picks(component, change), strict=True))
    value = change.value
    if change.kind in (ChangeKind.ADD, ChangeKind.SET) or (change.kind is ChangeKind.MEAN and value is not None):
        _check_value(value, chosen, change.kind, field)
    if not math.isfinite(change.factor):
        raise InvalidArgumentError(f"the factor is {change.factor}; send a finite number", field=f"{field}.factor")
    kinds = {
        ChangeKind.ADD: InterventionKind.ADD,
        ChangeKind.SCALE: InterventionKind.SCALE,
        ChangeKind.ABLATE: InterventionKind.ABLATE,
    }
    return _Checked(
        component,
        hook,
        Intervention(
            layer=int(hook.split(".")[1]) if hook.startswith("layers.") else None,
            hook=component.name if hook.startswith("layers.") else hook,
            kind=kinds.get(change.kind, InterventionKind.SET),
            positions=change.positions,
            heads=change.heads,
            neurons=change.neurons,
            value=value,
            factor=change.factor,
            direction=_unit(change, field, num_entries),
        ),
    )


def _picks(component: Component, change: Change) -> list[tuple[int, ...]]:
    """Return what is chosen along each dim, empty for all of it."""
    picks: list[tuple[int, ...]] = [()] * len(component.dims)
    if component.dims[0] in "HK":
        picks[0] = change.heads
    if len(component.dims) > 1:
        picks[-1] = change.neurons
    picks[position_dim(component)] = change.positions
    return picks


def _check_indices(indices: Sequence[int], size: int, what: str, field: str, hook: str) -> None:
    if indices and not size:
        raise InvalidArgumentError(f"{hook} has no {what}s; leave them out", field=field)
    for index in indices:
        if not 0 <= index < size:
            raise InvalidArgumentError(f"there is no {what} {index}; there are {size}, 0 to {size - 1}", field=field)
    if len(set(indices)) != len(indices):
        raise InvalidArgumentError(f"a {what} is named twice; name each once", field=field)


def _check_value(value: Floats | None, chosen: tuple[int, ...], kind: ChangeKind, field: str) -> None:
    fits = value is not None and value.ndim <= len(chosen) and _broadcasts(value.shape, chosen)
    if value is None or not fits:
        found = "none" if value is None else str(list(value.shape))
        shapes = " or ".join(str(list(chosen[start:])) for start in range(len(chosen) - 1, -1, -1))
        raise InvalidArgumentError(
            f"the value's shape is {found}; {kind.value} takes float32 {shapes} here, 1 where all are alike",
            field=f"{field}.value",
        )
    if not np.isfinite(value).all():
        raise InvalidArgumentError("the value holds NaN or infinity; send finite numbers", field=f"{field}.value")


def _broadcasts(shape: tuple[int, ...], onto: tuple[int, ...]) -> bool:
    return all(size in (1, wanted) for size, wanted in zip(reversed(shape), reversed(onto), strict=False))


def _unit(change: Change, field: str, num_entries: int) -> Floats | None:
    if change.direction is None:
        return None
    if change.neurons:
        raise InvalidArgumentError("a direction and neurons were given; give one of them", field=f"{field}.neurons")
    if not num_entries or change.direction.shape != (num_entries,):
        raise InvalidArgumentError(
            f"the direction's shape is {list(change.direction.shape)}; here it has [{num_entries}]"
            if num_entries
            else "this component has no dim that a direction could lie in; leave it out",
            field=f"{field}.direction",
        )
    length = float(np.linalg.norm(change.direction.astype(np.float64)))
    if not math.isfinite(length) or length == 0:
        raise InvalidArgumentError(
            f"the direction has the length {length}; give finite numbers that are not all zero",
            field=f"{field}.direction",
        )
    return np.asarray(change.direction / length, dtype=np.float32)


def _source(change: Change, field: str, given: ModelInput, read: Read) -> ModelInput | None:
    """Return what the pass reads from which a change takes something, None where it takes nothing."""
    if change.kind is ChangeKind.MEAN:
        return given if change.value is None else None
    if change.kind not in (ChangeKind.PATCH, ChangeKind.RESAMPLE):
        return None
    if change.source is None:
        raise InvalidArgumentError(
            f"{change.kind.value} takes what lies in another prompt; set source", field=f"{field}.source"
        )
    return read(change.source, f"{field}.source")


def _check_rows(change: Change, field: str, source_size: int, num_positions: int, component: Component) -> None:
    if change.kind is ChangeKind.MEAN:
        return
    if component.dims.endswith("PP") and source_size != num_positions:
        raise InvalidArgumentError(
            f"{component.name} goes over the positions of its own prompt; the source has {source_size} tokens, the "
            f"prompt {num_positions}, so take a source of the same length",
            field=f"{field}.source",
        )
    if change.kind is ChangeKind.RESAMPLE:
        return
    rows = change.source_positions or change.positions or tuple(range(num_positions))
    count = len(change.positions) or num_positions
    if len(rows) != count:
        raise InvalidArgumentError(
            f"there are {len(rows)} source positions for {count} positions; give one for each",
            field=f"{field}.source_positions",
        )
    for row in rows:
        if not 0 <= row < source_size:
            raise InvalidArgumentError(
                f"there is no position {row} in the source; it has {source_size} tokens, 0 to {source_size - 1}",
                field=f"{field}.source_positions",
            )


def _taken(change: Change, made: _Checked, found: Floats, num_positions: int) -> Intervention:
    """Make a change that sets what was found in another pass."""
    dim = position_dim(made.component)
    count = len(change.positions) or num_positions
    if change.kind is ChangeKind.MEAN:
        value = found.mean(axis=dim, keepdims=True)
    else:
        if change.kind is ChangeKind.RESAMPLE:
            rows = np.random.default_rng(change.seed).integers(found.shape[dim], size=count)
        else:
            rows = np.array(change.source_positions or change.positions or range(num_positions))
        value = found.take(rows, axis=dim)
    for axis, picked in enumerate(_picks(made.component, change)):
        if picked and axis != dim:
            value = value.take(picked, axis=axis)
    return replace(made.intervention, value=np.ascontiguousarray(value))
