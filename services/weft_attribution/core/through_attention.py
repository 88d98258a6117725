"""From a finished graph to the attention behind it: an edge's heads, and why a head attends."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from weft_attribution.core.frozen_graphs import FrozenGraph, FrozenGraphs, check_revision
from weft_attribution.core.head_loadings import EdgeSplit, reading_of, split_edge, written_by
from weft_attribution.core.ports import ModelRunner
from weft_attribution.core.query_key_weights import load_query_key
from weft_attribution.core.query_keys import AttentionScore, attention_hooks, explain_score
from weft_attribution.core.reading import check_count
from weft_common.errors import InvalidArgumentError

__all__ = ["AttentionReading", "ExplainedScore", "SplitOfEdge"]

Array = npt.NDArray[Any]
MAX_PARTS = 10_000


@dataclass(frozen=True)
class SplitOfEdge:
    """An edge as the graph has it, and in parts; of the last heads the largest, as (layer, head, position)."""

    weight: float
    split: EdgeSplit
    places: Array
    values: Array


@dataclass(frozen=True)
class ExplainedScore:
    """A score, what softmax makes of it, and the ids of its sources, in their order."""

    score: AttentionScore
    pattern: float
    frozen: FrozenGraph


class AttentionReading:
    """
    Answers questions on the attention behind finished graphs.

    Args:
        runner: The base model.
        models_dir: Folder of model folders.
        frozen: Graphs with their frozen models.
    """

    def __init__(self, runner: ModelRunner, models_dir: Path, frozen: FrozenGraphs) -> None:
        self._runner = runner
        self._models_dir = models_dir
        self._frozen = frozen

    async def split(self, graph_id: str, source: str, target: str, *, max_parts: int) -> SplitOfEdge:
        """
        Split an edge over heads and positions.

        Raises:
            InvalidArgumentError: One of the nodes is not there, or cannot stand there.
        """
        check_count(max_parts, MAX_PARTS, "max_parts")
        frozen = await self._frozen.open(graph_id)
        edges = frozen.opened.graph.edges
        table = edges.table
        low, high = frozen.opened.node(source, "source_node_id"), frozen.opened.node(target, "target_node_id")
        if low >= table.logit_start:
            raise InvalidArgumentError(
                f"{source} is a logit, which no edge begins at; give a feature, an error or a token",
                field="source_node_id",
            )
        if table.num_features <= high < table.logit_start:
            raise InvalidArgumentError(f"{target} has no inputs; give a feature or a logit", field="target_node_id")

        def compute() -> SplitOfEdge:
            with torch.no_grad():
                split = split_edge(frozen.operator, written_by(frozen, low), reading_of(frozen, high))
            flat = split.last_LHP.double().numpy().ravel()
            order = np.argsort(-np.abs(flat), kind="stable")[:max_parts]
            order = order[flat[order] != 0]
            places = np.stack(np.unravel_index(order, split.last_LHP.shape), axis=1)
            row = high if high < table.num_features else high - table.logit_start + table.num_features
            inside = slice(int(edges.indptr[row]), int(edges.indptr[row + 1]))
            weight = float(edges.values[inside][edges.indices[inside] == low].sum())
            return SplitOfEdge(weight, split, places, flat[order])

        return await asyncio.to_thread(compute)

    async def explain(
        self, graph_id: str, *, layer: int, head: int, query: int, key: int, max_pairs: int
    ) -> ExplainedScore:
        """
        Explain the score of a head at two positions.

        Raises:
            InvalidArgumentError: There is no such head or position.
        """
        check_count(max_pairs, MAX_PARTS, "max_pairs")
        frozen = await self._frozen.open(graph_id)
        weights, request = frozen.operator.weights, frozen.opened.request
        for value, count, field in (
            (layer, weights.num_layers, "layer"),
            (head, weights.num_heads, "head"),
            (query, frozen.operator.num_positions, "query_position"),
            (key, query + 1, "key_position"),
        ):
            if not 0 <= value < count:
                raise InvalidArgumentError(f"{field} is {value}; give 0 to {count - 1}", field=field)
        folder = self._models_dir / request.settings.model
        side = await asyncio.to_thread(load_query_key, folder, layer, head, weights.dtype)
        hooks = attention_hooks(layer, is_rotated=side.num_rotated > 0)
        capture = await self._runner.capture(request.settings.model, frozen.token_ids.tolist(), hooks)
        check_revision(frozen.opened, capture)

        def compute() -> ExplainedScore:
            with torch.no_grad():
                score = explain_score(
                    frozen.operator,
                    frozen.features,
                    frozen.token_ids,
                    side,
                    capture.tensors,
                    layer=layer,
                    head_index=head,
                    query=query,
                    key=key,
                    max_pairs=max_pairs,
                )
            return ExplainedScore(score, float(frozen.operator.pattern_HPP[layer][head, query, key]), frozen)

        return await asyncio.to_thread(compute)
