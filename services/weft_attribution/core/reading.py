"""What a finished graph tells: scores of its parts, its strongest paths, a summary, another graph beside it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from weft_attribution.core import comparing
from weft_attribution.core.comparing import Comparison
from weft_attribution.core.influence import Scores, graph_scores
from weft_attribution.core.model_folder import ModelFolder
from weft_attribution.core.open_graphs import OpenGraph, OpenGraphs
from weft_attribution.core.paths import FoundPaths, strongest_paths
from weft_attribution.core.ports import ModelRunner
from weft_attribution.core.records import check_threshold
from weft_attribution.core.subgraphs import SubgraphScores, score_subgraph
from weft_attribution.core.supernodes import (
    Group,
    choose_features,
    flows,
    group_nodes,
    positions_in_graph,
    similarity,
    written,
)
from weft_attribution.core.transcoder import TranscoderReader
from weft_common.errors import FailedPreconditionError, InvalidArgumentError
from weft_store.port import ObjectStore

__all__ = ["GraphReading", "LabelledGroup", "Summary"]

Array = npt.NDArray[Any]
MAX_PINNED = 10_000
MAX_PATHS = 100
MAX_SUPERNODES = 12
MAX_COMPARED_NODES = 500
MAX_COMPARED_EDGES = 20_000
_TOKENS_OF_A_LABEL = 3


@dataclass(frozen=True)
class LabelledGroup:
    """A group, what it is called, and the tokens that it raises most."""

    group: Group
    label: str
    raised_tokens: tuple[str, ...] = ()


@dataclass(frozen=True)
class Summary:
    """A graph in a few groups; flows by source and target group, in absolute values and with signs."""

    groups: tuple[LabelledGroup, ...]
    flow_GG: Array
    net_GG: Array
    influence_share: float
    flow_share: float
    whole: Scores
    part: Scores


class GraphReading:
    """
    Answers questions on finished graphs.

    Args:
        store: The bucket.
        runner: The base model, for the texts of tokens.
        models: Frozen weights.
        opened: Finished graphs.
    """

    def __init__(self, store: ObjectStore, runner: ModelRunner, models: ModelFolder, opened: OpenGraphs) -> None:
        self._store = store
        self._runner = runner
        self._models = models
        self._opened = opened

    def score(self, graph_id: str, node_ids: Sequence[str]) -> tuple[Scores, SubgraphScores]:
        """Score the whole graph, and the part of it that some nodes make up; blocks."""
        if len(node_ids) > MAX_PINNED:
            raise InvalidArgumentError(
                f"node_ids has {len(node_ids)} nodes; give at most {MAX_PINNED}", field="node_ids"
            )
        found = self._opened.open(graph_id)
        nodes = np.array([found.node(name, "node_ids") for name in node_ids], dtype=np.int64)
        return _whole_scores(found), _part_scores(found, nodes)

    def paths(self, graph_id: str, source: str, target: str, num_paths: int) -> tuple[OpenGraph, FoundPaths]:
        """Find the strongest paths between two nodes; blocks."""
        check_count(num_paths, MAX_PATHS, "num_paths")
        found = self._opened.open(graph_id)
        table = found.graph.edges.table
        low, high = found.node(source, "source_node_id"), found.node(target, "target_node_id")
        if low >= table.logit_start:
            raise InvalidArgumentError(
                f"{source} is a logit, where every path ends; give a feature, an error or a token",
                field="source_node_id",
            )
        if table.num_features <= high < table.logit_start:
            raise InvalidArgumentError(f"{target} has no inputs; give a feature or a logit", field="target_node_id")
        return found, strongest_paths(found.graph.edges, found.sums, low, high, count=num_paths)

    async def summary(
        self, graph_id: str, *, max_supernodes: int, likeness: str, node_threshold: float
    ) -> tuple[OpenGraph, Summary]:
        """
        Group a graph's nodes.

        Args:
            graph_id: The graph.
            max_supernodes: Most groups of features.
            likeness: What makes features alike: `decoder`, `graph`, or `both`.
            node_threshold: Share of the features' influence that is grouped.
        """
        check_count(max_supernodes, MAX_SUPERNODES, "max_supernodes")
        check_threshold(node_threshold, "node_threshold")
        opened = await asyncio.to_thread(self._opened.open, graph_id)
        request = opened.request
        transcoder = await asyncio.to_thread(TranscoderReader, self._store, request.settings.transcoder)

        def compute() -> tuple[list[Array], list[Group], Summary]:
            graph, influence = opened.graph, opened.influence
            weights = self._models.weights(request.settings.model)
            features = choose_features(influence, graph.edges.table.num_features, node_threshold)
            layer_n, index_n = np.asarray(graph.nodes.layer_N)[features], np.asarray(graph.nodes.index_N)[features]
            written_nD = written(transcoder, layer_n, index_n, weights.d_model)
            place_nM = positions_in_graph(graph.edges, opened.sums, influence, graph.logit_weights, features)
            alike = similarity(written_nD if likeness != "graph" else None, place_nM if likeness != "decoder" else None)
            groups = group_nodes(graph.edges, influence, features, alike, max_supernodes)
            flow, net = flows(graph.edges, opened.sums, influence, graph.logit_weights, groups)
            raised = []
            for group in groups:
                if group.kind == "features":
                    inside = np.searchsorted(features, group.nodes)
                    sum_D = (written_nD[inside] * influence[group.nodes, None]).sum(axis=0)
                    folded_D = weights.final_norm.fold(torch.from_numpy(sum_D).to(weights.dtype))
                    raised.append((weights.unembedding_VD @ folded_D).topk(_TOKENS_OF_A_LABEL).indices.numpy())
            named = np.array([group.kind != "others" for group in groups])
            part, whole_flow = _part_scores(opened, features), float(flow.sum())
            summary = Summary(
                groups=(),
                flow_GG=flow,
                net_GG=net,
                influence_share=part.influence_share,
                flow_share=float(flow[np.ix_(named, named)].sum()) / whole_flow if whole_flow > 0 else 1.0,
                whole=_whole_scores(opened),
                part=part.scores,
            )
            return raised, groups, summary

        raised, groups, summary = await asyncio.to_thread(compute)
        ids = sorted({int(token) for tokens in raised for token in tokens})
        texts = dict(zip(ids, await self._runner.detokenize(request.settings.model, ids), strict=True)) if ids else {}
        labelled = []
        for place, group in enumerate(groups):
            # Groups of features come first.
            tokens = tuple(texts[int(token)] for token in raised[place]) if place < len(raised) else ()
            labelled.append(LabelledGroup(group, _label(opened, group, tokens), tokens))
        return opened, replace(summary, groups=tuple(labelled))

    def compare(
        self, graph_id: str, other_id: str, *, max_nodes: int, max_edges: int
    ) -> tuple[OpenGraph, OpenGraph, Comparison]:
        """
        Hold two graphs side by side; blocks.

        Raises:
            FailedPreconditionError: They are of different models or transcoders.
        """
        check_count(max_nodes, MAX_COMPARED_NODES, "max_nodes")
        check_count(max_edges, MAX_COMPARED_EDGES, "max_edges")
        first, other = self._opened.open(graph_id), self._opened.open(other_id)
        made = [
            (each.request.settings.model, each.model_revision, each.request.settings.transcoder)
            for each in (first, other)
        ]
        if made[0] != made[1]:
            raise FailedPreconditionError(
                f"graphs/{graph_id} is of {_made_with(made[0])}, graphs/{other_id} of {_made_with(made[1])}; "
                "compare graphs of one model and transcoder"
            )
        return first, other, comparing.compare(first, other, max_nodes=max_nodes, max_edges=max_edges)


def check_count(value: int, most: int, field: str) -> None:
    """Check a number of things asked for. InvalidArgumentError."""
    if not 1 <= value <= most:
        raise InvalidArgumentError(f"{field} is {value}; give 1 to {most}, or 0 for the default", field=field)


def _made_with(made: tuple[str, str, str]) -> str:
    model, revision, transcoder = made
    return f"models/{model} at revision {revision or 'unknown'} and transcoders/{transcoder}"


def _whole_scores(found: OpenGraph) -> Scores:
    return graph_scores(found.graph.edges, found.influence, found.graph.logit_weights, found.sums)


def _part_scores(found: OpenGraph, nodes: Array) -> SubgraphScores:
    return score_subgraph(found.graph.edges, found.influence, found.graph.logit_weights, nodes)


def _label(found: OpenGraph, group: Group, tokens: tuple[str, ...]) -> str:
    nodes, table = found.graph.nodes, found.graph.edges.table
    if group.kind == "tokens":
        first = nodes.tokens[int(group.nodes[0]) - table.token_start].text
        return repr(first) if len(group.nodes) == 1 else f"{len(group.nodes)} other tokens"
    if group.kind == "logits":
        return ", ".join(repr(token.text) for token in nodes.logits[:_TOKENS_OF_A_LABEL])
    if group.kind != "features":
        return {"errors": "errors", "others": "other features"}[group.kind]
    layers = np.asarray(nodes.layer_N)[group.nodes]
    held = np.bincount(np.asarray(nodes.position_N)[group.nodes], found.influence[group.nodes])
    span = f"L{layers.min()}" if layers.min() == layers.max() else f"L{layers.min()}-{layers.max()}"
    return f"{span} at {nodes.tokens[int(held.argmax())].text!r}: " + ", ".join(map(repr, tokens))
