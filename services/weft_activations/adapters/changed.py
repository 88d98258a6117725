"""What an intervention makes of a component's value."""

from collections.abc import Sequence

import torch
from torch import Tensor

from weft_activations.core.component import position_dim
from weft_activations.core.components import component_at
from weft_activations.core.ports import Intervention, InterventionKind

__all__ = ["changed"]


def changed(value: Tensor, intervention: Intervention) -> Tensor:
    """
    Return a component's value after an intervention.

    Args:
        value: [B, ...], the component's dims after the first.
        intervention: Checked against the component's shape.
    """
    component = component_at(intervention.name)
    dims = component.dims
    picks: list[tuple[int, ...]] = [()] * len(dims)
    if dims[0] in "HK":
        picks[0] = intervention.heads
    if len(dims) > 1:
        picks[-1] = intervention.neurons
    picks[position_dim(component)] = intervention.positions
    if not any(picks) and intervention.row is None:
        return _new(value, intervention)
    index = _mesh(value, picks, range(value.shape[0]) if intervention.row is None else [intervention.row])
    whole = value.clone()
    whole[index] = _new(value[index], intervention)
    return whole


def _mesh(value: Tensor, picks: list[tuple[int, ...]], rows: Sequence[int]) -> tuple[Tensor, ...]:
    """Return indices of the chosen entries of every dim, the batch's too, that broadcast against each other."""
    chosen = [
        rows,
        *(picked or range(size) for picked, size in zip(picks, value.shape[1:], strict=True)),
    ]
    return tuple(
        torch.tensor(list(entries), device=value.device).view(-1, *[1] * (len(chosen) - 1 - dim))
        for dim, entries in enumerate(chosen)
    )


def _new(there: Tensor, intervention: Intervention) -> Tensor:
    if intervention.kind is InterventionKind.SCALE:
        new = there * intervention.factor
    elif intervention.kind is InterventionKind.ABLATE:
        new = torch.zeros_like(there)
    else:
        given = torch.as_tensor(intervention.value).to(dtype=there.dtype, device=there.device)
        new = there + given if intervention.kind is InterventionKind.ADD else given.expand_as(there)
    if intervention.direction is None:
        return new
    along = torch.as_tensor(intervention.direction).to(dtype=there.dtype, device=there.device)
    return there + ((new - there) * along).sum(-1, keepdim=True) * along
