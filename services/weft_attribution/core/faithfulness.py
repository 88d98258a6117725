"""
How far a graph can be trusted: its most influential features, ablated one by one in the model.

An effect is the sum over the explained logits of the absolute change of the demeaned logit, weighted as the graph
weights them. It is held against influence by Spearman's rank correlation: with the model left free, and with patterns
and norm scales held, which the graph takes as given.

Source: Ameisen et al. 2025, methods, "validating the replacement model". Deviations: the effect is on explained logits.
"""

import asyncio
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from weft_attribution.core.graph_json import node_id
from weft_attribution.core.influence import Edges
from weft_attribution.core.model_folder import ModelFolder
from weft_attribution.core.open_graphs import OpenGraphs
from weft_attribution.core.ports import ModelRunner, ProgressFn
from weft_attribution.core.ranks import spearman
from weft_attribution.core.readouts import demeaned_logits
from weft_attribution.core.steering import additions_of, check_explains_tokens
from weft_attribution.core.summaries import GraphSummaries
from weft_attribution.core.transcoder import TranscoderReader
from weft_common.errors import InvalidArgumentError
from weft_store.port import ObjectStore

__all__ = ["FaithfulnessSweep"]

Json = dict[str, Any]
Array = npt.NDArray[Any]
MAX_NODES = 500
MIN_NODES = 3


class FaithfulnessSweep:
    """
    Measures finished graphs.

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
        self._summaries = GraphSummaries(store)

    async def check(self, graph_id: str, num_nodes: int) -> float:
        """
        Check what is asked for, and tell when the graph was asked for, in seconds since 1970.

        Raises:
            InvalidArgumentError: There are too many or too few nodes.
            NotFoundError, FailedPreconditionError: The graph is not there, not finished, or not of tokens.
        """
        if not MIN_NODES <= num_nodes <= MAX_NODES:
            raise InvalidArgumentError(
                f"num_nodes is {num_nodes}; give {MIN_NODES} to {MAX_NODES}, or 0 for the default", field="num_nodes"
            )
        opened = await asyncio.to_thread(self._opened.open, graph_id)
        check_explains_tokens(opened)
        return opened.request.create_s

    async def measure(self, graph_id: str, num_nodes: int, progress: ProgressFn) -> Json:
        """
        Ablate the most influential features, and keep the result with the graph.

        Returns:
            `num_nodes`, the three rank correlations, `nodes` and `create_s`, as stored.
        """
        await self.check(graph_id, num_nodes)
        opened = await asyncio.to_thread(self._opened.open, graph_id)
        settings, nodes, graph = opened.request.settings, opened.graph.nodes, opened.graph
        transcoder = await asyncio.to_thread(TranscoderReader, self._store, settings.transcoder)
        weights = await asyncio.to_thread(self._models.weights, settings.model)
        influence = opened.influence[: graph.edges.table.num_features]
        chosen = [int(node) for node in np.argsort(-influence, kind="stable")[:num_nodes] if influence[node] > 0]
        token_ids = [token.id for token in nodes.tokens]
        hooks = ("ln_final.normed",)
        clean, _ = demeaned_logits(opened, weights, await self._runner.capture(settings.model, token_ids, hooks))
        every = range(weights.num_layers)
        found: list[Json] = []
        for done, node in enumerate(chosen):
            progress("ablate", done, len(chosen))
            delta = {node: -float(nodes.activation_N[node])}
            additions = await asyncio.to_thread(additions_of, opened, transcoder, delta)
            effects = []
            for held, frozen in ((every, True), (range(0), True), (range(0), False)):
                capture = await self._runner.steer(
                    settings.model, token_ids, additions, held_layers=held, freeze_attention=frozen, hooks=hooks
                )
                change = demeaned_logits(opened, weights, capture)[0] - clean
                effects.append(float(graph.logit_weights @ np.abs(change)))
            found.append(
                {
                    "node_id": node_id(nodes, node),
                    "influence": float(influence[node]),
                    "predicted_direct": float(graph.logit_weights @ np.abs(_edges_to_logits(graph.edges, node))),
                    **dict(zip(("effect_direct", "effect_frozen", "effect"), effects, strict=True)),
                }
            )
        result: Json = {
            "num_nodes": len(found),
            "spearman": _agreement(found, "influence", "effect"),
            "spearman_frozen": _agreement(found, "influence", "effect_frozen"),
            "spearman_direct": _agreement(found, "predicted_direct", "effect_direct"),
            "nodes": found,
            "create_s": time.time(),
        }
        await asyncio.to_thread(self._summaries.set_faithfulness, opened.request, result)
        return result


def _agreement(found: list[Json], first: str, other: str) -> float | None:
    return spearman([each[first] for each in found], [each[other] for each in found])


def _edges_to_logits(edges: Edges, node: int) -> Array:
    found = []
    for row in range(edges.table.num_features, edges.num_rows):
        inside = slice(int(edges.indptr[row]), int(edges.indptr[row + 1]))
        found.append(float(edges.values[inside][edges.indices[inside] == node].sum()))
    return np.array(found)
