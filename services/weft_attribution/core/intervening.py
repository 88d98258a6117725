"""Changes to features of a graph: what the graph predicts of them, and what the model then does."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from weft_attribution.core.graph_json import node_id
from weft_attribution.core.interventions import feature_additions, predict
from weft_attribution.core.open_graphs import OpenGraphs
from weft_attribution.core.ports import ModelRunner
from weft_attribution.core.summaries import GraphSummaries
from weft_attribution.core.transcoder import TranscoderReader
from weft_attribution.core.whole_graph import WholeGraph
from weft_common.errors import FailedPreconditionError, InvalidArgumentError
from weft_store.port import ObjectStore

__all__ = ["Change", "Intervening"]

Json = dict[str, Any]


@dataclass(frozen=True)
class Change:
    """A change to one feature node: a factor on its activation, or a new value."""

    node_id: str
    factor: float | None = None
    value: float | None = None


class Intervening:
    """
    Changes features of finished graphs.

    Args:
        store: The bucket.
        runner: The base model.
        opened: Finished graphs.
        summaries: Where results are kept.
    """

    def __init__(self, store: ObjectStore, runner: ModelRunner, opened: OpenGraphs, summaries: GraphSummaries) -> None:
        self._store, self._runner, self._opened, self._summaries = store, runner, opened, summaries

    async def change(self, graph_id: str, changes: Sequence[Change]) -> Json:
        """
        Change features, in the graph and in the model, and keep the result with the graph.

        Returns:
            `interventions`, `effects` and `create_s`, as stored.
        """
        opened = await asyncio.to_thread(self._opened.open, graph_id)
        request, graph = opened.request, opened.graph
        delta = _deltas(graph, changes)
        if any(target.kind != "token" for target in request.settings.targets):
            raise FailedPreconditionError(
                f"graphs/{graph_id} explains more than logits of tokens, which is all that an intervention measures; "
                "make a graph of tokens"
            )
        settings, nodes, edges = request.settings, graph.nodes, graph.edges
        transcoder = await asyncio.to_thread(TranscoderReader, self._store, settings.transcoder)
        moved = [
            (int(nodes.layer_N[node]), int(nodes.index_N[node]), int(nodes.position_N[node]), amount)
            for node, amount in delta.items()
        ]
        direct, total = await asyncio.to_thread(predict, edges, nodes.activation_N, delta)
        additions = await asyncio.to_thread(feature_additions, transcoder, moved, edges.table.num_layers)
        token_ids = [token.id for token in nodes.tokens]
        logits_of = [token.id for token in nodes.logits]
        before = await self._runner.run(settings.model, token_ids, (), frozen=False, logits_of=logits_of)
        frozen = await self._runner.run(settings.model, token_ids, additions, frozen=True, logits_of=logits_of)
        free = await self._runner.run(settings.model, token_ids, additions, frozen=False, logits_of=logits_of)
        effects = [
            {
                "token_id": token.id,
                "text": token.text,
                "predicted": float(direct[k]),
                "predicted_total": float(total[k]),
                "measured_frozen": (frozen.logits[k] - frozen.mean_logit) - (before.logits[k] - before.mean_logit),
                "measured": (free.logits[k] - free.mean_logit) - (before.logits[k] - before.mean_logit),
                "probability_before": before.probabilities[k],
                "probability_after": free.probabilities[k],
            }
            for k, token in enumerate(nodes.logits)
        ]
        result: Json = {
            "interventions": [
                {"node_id": change.node_id, "factor": change.factor, "value": change.value} for change in changes
            ],
            "effects": effects,
            "create_s": time.time(),
        }
        await asyncio.to_thread(self._summaries.add_intervention, request, result)
        return result


def _deltas(graph: WholeGraph, changes: Sequence[Change]) -> Mapping[int, float]:
    if not changes:
        raise InvalidArgumentError("interventions is empty; name at least one feature node", field="interventions")
    nodes = graph.nodes
    by_id = {node_id(nodes, node): node for node in range(nodes.table.num_features)}
    delta: dict[int, float] = {}
    for change in changes:
        if change.node_id not in by_id:
            raise InvalidArgumentError(
                f"{change.node_id[:100]!r} is no active feature of this graph; "
                "give a node id such as 12_345_4: layer, feature, position",
                field="interventions",
            )
        node = by_id[change.node_id]
        if node in delta:
            raise InvalidArgumentError(f"node {change.node_id} is named twice; name it once", field="interventions")
        activation = float(nodes.activation_N[node])
        wanted = change.value if change.value is not None else activation * (change.factor or 0.0)
        if (change.value is None) == (change.factor is None) or not np.isfinite(wanted):
            raise InvalidArgumentError(
                f"the change of node {change.node_id} needs either a finite factor or a finite value",
                field="interventions",
            )
        delta[node] = wanted - activation
    return delta
