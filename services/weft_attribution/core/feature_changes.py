"""What is done to features of a graph, and the activations that they come to have."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from weft_attribution.core.firing import layers_read
from weft_attribution.core.open_graphs import OpenGraph
from weft_attribution.core.ports import ModelRunner
from weft_attribution.core.readouts import encode_at
from weft_attribution.core.transcoder import TranscoderReader
from weft_common.errors import InvalidArgumentError

__all__ = ["FeatureChange", "Patch", "deltas_of"]


@dataclass(frozen=True)
class Patch:
    """A feature's activation on another prompt; position -1 is the node's own."""

    prompt: str
    position: int = -1


@dataclass(frozen=True)
class FeatureChange:
    """What is done to some feature nodes alike: exactly one of factor, value and patch is there."""

    node_ids: tuple[str, ...]
    factor: float | None = None
    value: float | None = None
    patch: Patch | None = None


async def deltas_of(
    runner: ModelRunner, opened: OpenGraph, transcoder: TranscoderReader, changes: Sequence[FeatureChange]
) -> dict[int, float]:
    """
    By how much each changed node's activation changes.

    Raises:
        InvalidArgumentError: A change or node is not there or not whole.
    """
    if not changes:
        raise InvalidArgumentError("changes is empty; name at least one feature node", field="changes")
    found: dict[int, float] = {}
    for place, change in enumerate(changes):
        field = f"changes[{place}]"
        given = [part for part in (change.factor, change.value, change.patch) if part is not None]
        if not change.node_ids or len(given) != 1:
            raise InvalidArgumentError(f"{field} needs nodes, and one of factor, value and patch", field=field)
        nodes = [opened.node(name, field) for name in change.node_ids]
        wanted = await _wanted(runner, opened, transcoder, change, nodes, field)
        for name, node, value in zip(change.node_ids, nodes, wanted, strict=True):
            if node in found:
                raise InvalidArgumentError(f"node {name} is named twice; name it once", field=field)
            found[node] = value - float(opened.graph.nodes.activation_N[node])
    return found


async def _wanted(
    runner: ModelRunner,
    opened: OpenGraph,
    transcoder: TranscoderReader,
    change: FeatureChange,
    nodes: Sequence[int],
    field: str,
) -> list[float]:
    """The activation that each node shall have."""
    graph = opened.graph.nodes
    for name, node in zip(change.node_ids, nodes, strict=True):
        if node >= graph.table.num_features:
            raise InvalidArgumentError(f"{name} is no feature; only features can be changed", field=field)
    if change.patch is not None:
        return await _patched(runner, opened, transcoder, change.patch, nodes, field)
    wanted = [
        change.value if change.value is not None else float(graph.activation_N[node]) * (change.factor or 0.0)
        for node in nodes
    ]
    if not all(map(isfinite, wanted)):
        raise InvalidArgumentError(f"{field} is not finite; give a finite factor or value", field=field)
    return wanted


async def _patched(
    runner: ModelRunner,
    opened: OpenGraph,
    transcoder: TranscoderReader,
    patch: Patch,
    nodes: Sequence[int],
    field: str,
) -> list[float]:
    if not patch.prompt:
        raise InvalidArgumentError(f"{field} has an empty prompt; give the text to patch from", field=field)
    model, graph = opened.request.settings.model, opened.graph.nodes
    tokens = await runner.tokenize(model, patch.prompt)
    layers = layers_read(transcoder, {int(graph.layer_N[node]) for node in nodes}, graph.table.num_layers)
    hook = transcoder.manifest.input_hook
    places = [patch.position if patch.position >= 0 else int(graph.position_N[node]) for node in nodes]
    if max(places) >= len(tokens):
        raise InvalidArgumentError(
            f"{field} reads position {max(places)} of a prompt of {len(tokens)} tokens; give a position of it",
            field=field,
        )
    capture = await runner.capture(
        model, [token.id for token in tokens], [f"layers.{layer}.{hook}" for layer in layers]
    )
    keys = [(int(graph.layer_N[n]), int(graph.index_N[n]), p) for n, p in zip(nodes, places, strict=True)]
    values = await asyncio.to_thread(encode_at, transcoder, keys, capture)
    return [activation for _, activation in values]
