"""
Features and supernodes changed in the model, predicted beside measured for every node shown.

A change adds its difference times the decoder at every layer that the feature writes to. MLPs of layers that are held
return what they do without it, so that no feature there answers; all others answer. With all of them held, and
attention with them, the model is linear, and measured is predicted up to rounding.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from weft_attribution.core.feature_changes import FeatureChange, deltas_of
from weft_attribution.core.firing import layers_read
from weft_attribution.core.influence import prune
from weft_attribution.core.interventions import feature_additions, predict_rows
from weft_attribution.core.model_folder import ModelFolder
from weft_attribution.core.open_graphs import OpenGraph, OpenGraphs
from weft_attribution.core.ports import Addition, Capture, ModelRunner
from weft_attribution.core.ranks import spearman
from weft_attribution.core.readouts import FINAL, demeaned_logits, encode_at
from weft_attribution.core.transcoder import TranscoderReader
from weft_attribution.core.weights import LinearWeights
from weft_common.errors import FailedPreconditionError, InvalidArgumentError
from weft_store.port import ObjectStore

__all__ = [
    "NodeEffect",
    "SteeredLogit",
    "Steering",
    "SteeringPlan",
    "Steers",
    "additions_of",
    "check_explains_tokens",
]

Array = npt.NDArray[Any]
MAX_SHOWN = 10_000


@dataclass(frozen=True)
class SteeringPlan:
    """Changes, the first and last layer that are held or None, and the nodes shown or none for those kept."""

    changes: tuple[FeatureChange, ...]
    held: tuple[int, int] | None = None
    freeze_attention: bool = False
    shown: tuple[str, ...] = ()


@dataclass(frozen=True)
class NodeEffect:
    """One feature: pre-activation before, its change as predicted and measured, and the activation it leads to."""

    node: int
    before: float
    predicted: float
    measured: float
    activation_after: float


@dataclass(frozen=True)
class SteeredLogit:
    """One logit: the change of the demeaned logit, and its probability before and after."""

    token_id: int
    text: str
    predicted: float
    measured: float
    probability_before: float
    probability_after: float


@dataclass(frozen=True)
class Steering:
    """Predicted beside measured."""

    opened: OpenGraph
    nodes: tuple[NodeEffect, ...]
    logits: tuple[SteeredLogit, ...]
    rank_agreement: float | None


class Steers:
    """
    Steers finished graphs.

    Args:
        store: The bucket.
        runner: The base model.
        models: Frozen weights.
        opened: Finished graphs.
    """

    def __init__(self, store: ObjectStore, runner: ModelRunner, models: ModelFolder, opened: OpenGraphs) -> None:
        self._store = store
        self._runner = runner
        self._models = models
        self._opened = opened

    async def steer(self, graph_id: str, plan: SteeringPlan) -> Steering:
        """
        Change features in graph and model.

        Raises:
            InvalidArgumentError: A change, layer or node is not there or not whole.
            FailedPreconditionError: The graph explains more than logits of tokens.
        """
        opened = await asyncio.to_thread(self._opened.open, graph_id)
        check_explains_tokens(opened)
        settings, nodes, edges = opened.request.settings, opened.graph.nodes, opened.graph.edges
        transcoder = await asyncio.to_thread(TranscoderReader, self._store, settings.transcoder)
        weights = await asyncio.to_thread(self._models.weights, settings.model)
        held = _held_layers(plan.held, weights.num_layers)
        shown = _shown(opened, plan.shown)
        delta = await deltas_of(self._runner, opened, transcoder, plan.changes)
        answers_N = ~np.isin(np.asarray(nodes.layer_N), held)
        predicted_R = await asyncio.to_thread(predict_rows, edges, nodes.activation_N, delta, answers_N)
        additions = await asyncio.to_thread(additions_of, opened, transcoder, delta)
        layers = layers_read(transcoder, {int(nodes.layer_N[node]) for node in shown}, weights.num_layers)
        hooks = [*(f"layers.{layer}.{transcoder.manifest.input_hook}" for layer in layers), FINAL]
        token_ids = [token.id for token in nodes.tokens]
        before = await self._runner.capture(settings.model, token_ids, hooks)
        after = await self._runner.steer(
            settings.model,
            token_ids,
            additions,
            held_layers=held,
            freeze_attention=plan.freeze_attention,
            hooks=hooks,
        )
        effects = await asyncio.to_thread(_node_effects, opened, transcoder, shown, predicted_R, before, after)
        logits = _logit_effects(opened, weights, predicted_R, before, after)
        predicted = [*(each.predicted for each in effects), *(each.predicted for each in logits)]
        measured = [*(each.measured for each in effects), *(each.measured for each in logits)]
        agreement = spearman(predicted, measured)
        return Steering(opened, tuple(effects), tuple(logits), agreement)


def check_explains_tokens(opened: OpenGraph) -> None:
    """Check that a graph's logits can be measured. FailedPreconditionError."""
    if any(target.kind != "token" for target in opened.request.settings.targets):
        raise FailedPreconditionError(
            f"graphs/{opened.request.graph_id} explains more than logits of tokens, which is all that is measured; "
            "make a graph of tokens"
        )


def additions_of(opened: OpenGraph, transcoder: TranscoderReader, delta: Mapping[int, float]) -> tuple[Addition, ...]:
    """What changes of activations add to MLP outputs."""
    nodes = opened.graph.nodes
    moved = [
        (int(nodes.layer_N[node]), int(nodes.index_N[node]), int(nodes.position_N[node]), amount)
        for node, amount in delta.items()
    ]
    return feature_additions(transcoder, moved, nodes.table.num_layers)


def _held_layers(held: tuple[int, int] | None, num_layers: int) -> range:
    if held is None:
        return range(0)
    if not 0 <= held[0] <= held[1] < num_layers:
        raise InvalidArgumentError(
            f"held is layers {held[0]} to {held[1]}; give a first and a last of 0 to {num_layers - 1}", field="held"
        )
    return range(held[0], held[1] + 1)


def _shown(opened: OpenGraph, names: Sequence[str]) -> list[int]:
    table = opened.graph.edges.table
    if len(names) > MAX_SHOWN:
        raise InvalidArgumentError(
            f"shown_node_ids has {len(names)} nodes; give at most {MAX_SHOWN}", field="shown_node_ids"
        )
    if not names:
        settings = opened.request.settings
        kept = prune(
            opened.graph.edges,
            opened.influence,
            opened.graph.logit_weights,
            node_threshold=settings.node_threshold,
            edge_threshold=settings.edge_threshold,
        )
        return [int(node) for node in np.flatnonzero(kept.node_mask[: table.num_features])]
    nodes = [opened.node(name, "shown_node_ids") for name in names]
    for name, node in zip(names, nodes, strict=True):
        if node >= table.num_features:
            raise InvalidArgumentError(f"{name} is no feature; name features", field="shown_node_ids")
    return nodes


def _node_effects(
    opened: OpenGraph,
    transcoder: TranscoderReader,
    shown: Sequence[int],
    predicted_R: Array,
    before: Capture,
    after: Capture,
) -> list[NodeEffect]:
    nodes = opened.graph.nodes
    keys = [(int(nodes.layer_N[n]), int(nodes.index_N[n]), int(nodes.position_N[n])) for n in shown]
    clean, changed = encode_at(transcoder, keys, before), encode_at(transcoder, keys, after)
    return [
        NodeEffect(node, was, float(predicted_R[node]), now - was, activation)
        for node, (was, _), (now, activation) in zip(shown, clean, changed, strict=True)
    ]


def _logit_effects(
    opened: OpenGraph, weights: LinearWeights, predicted_R: Array, before: Capture, after: Capture
) -> list[SteeredLogit]:
    was, probability_was = demeaned_logits(opened, weights, before)
    now, probability_now = demeaned_logits(opened, weights, after)
    first = opened.graph.edges.table.num_features
    return [
        SteeredLogit(
            token.id,
            token.text,
            float(predicted_R[first + k]),
            float(now[k] - was[k]),
            float(probability_was[k]),
            float(probability_now[k]),
        )
        for k, token in enumerate(opened.graph.nodes.logits)
    ]
