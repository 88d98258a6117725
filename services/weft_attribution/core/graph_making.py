"""Make one graph: capture, features, sweep, influence, store; or take over the rows of one that was made before."""

import asyncio
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from weft_attribution.core.gate import Gate
from weft_attribution.core.graph_cache import GraphCache
from weft_attribution.core.influence import compute_influence, graph_scores
from weft_attribution.core.model_folder import ModelFolder
from weft_attribution.core.open_graphs import OpenGraphs
from weft_attribution.core.partial_graphs import PartialGraphs
from weft_attribution.core.pipeline import Building, Limits, capture_hooks
from weft_attribution.core.ports import Capture, ModelInfo, ModelRunner, ProgressFn, Token
from weft_attribution.core.pruned_content import pruned_content, shown_so_far
from weft_attribution.core.records import GraphRequest, edges_key, graph_key
from weft_attribution.core.shared_rows import SharedRows
from weft_attribution.core.summaries import GraphSummaries
from weft_attribution.core.targets import Target, choose_targets, name_targets
from weft_attribution.core.transcoder import TranscoderReader
from weft_attribution.core.waited_threads import in_thread
from weft_attribution.core.whole_graph import WholeGraph, open_graph
from weft_common.errors import DataLossError, FailedPreconditionError, NotFoundError
from weft_store.documents import keep_json
from weft_store.port import ObjectStore

__all__ = ["GraphMaking"]

Json = dict[str, Any]


@dataclass
class Stages:
    """Wall time by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, stage: str, since: float) -> float:
        """Book the time since `since` on a stage, and return now."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - since
        return now


class GraphMaking:
    """
    Makes graphs.

    Args:
        store: The bucket.
        runner: The base model.
        models: Frozen weights.
        limits: What a graph may take, less what its settings say.
        part_rows: Rows that another replica may take at a time; 0 hands none out.
        gate: Held while a graph is made.
        opened: Finished graphs.
        summaries: What is told of them.
    """

    def __init__(
        self,
        store: ObjectStore,
        runner: ModelRunner,
        models: ModelFolder,
        limits: Limits,
        *,
        part_rows: int,
        gate: Gate,
        opened: OpenGraphs,
        summaries: GraphSummaries,
    ) -> None:
        self._store, self._runner, self._models, self._limits = store, runner, models, limits
        self._part_rows, self._gate, self._opened, self._summaries = part_rows, gate, opened, summaries
        self._partial, self._cache = PartialGraphs(store), GraphCache(store)

    async def make(
        self,
        request: GraphRequest,
        info: ModelInfo,
        tokens: Sequence[Token],
        asked: Sequence[Target],
        progress: ProgressFn,
        begun: float,
    ) -> Json:
        """
        Compute a graph and store it; what a dead process left behind is computed again.

        Args:
            request: How it was asked for.
            info: The model.
            tokens: The prompt.
            asked: What to explain; none means the likeliest tokens.
            progress: Told how far it is; may raise to stop.
            begun: When the work on it began, by `time.perf_counter`.

        Returns:
            The finished graph's document.
        """
        stages, settings = Stages(), request.settings
        made_of = await asyncio.to_thread(self._cache.key, settings, info, tokens, asked)
        there = await asyncio.to_thread(self._taken_over, request, made_of, begun)
        if there is not None:
            return there
        transcoder = await asyncio.to_thread(TranscoderReader, self._store, settings.transcoder)
        weights = await asyncio.to_thread(self._models.weights, settings.model)
        hooks = capture_hooks(transcoder.manifest.input_hook, has_post_norms=weights.has_post_norms)
        capture = await self._runner.capture(settings.model, [token.id for token in tokens], hooks)
        targets, probabilities = choose_targets(
            capture.tensors["logits"],
            max_logits=settings.max_logits,
            probability=settings.logit_probability,
            targets=asked,
        )
        logits = await name_targets(self._runner, info, targets)
        stages.add("capture", begun)
        limits = replace(self._limits, batch_size=settings.batch_size, max_features=settings.max_features)

        def compute() -> Json:
            with self._gate.making(), tempfile.TemporaryDirectory(prefix="weft-graph-") as folder:
                path = Path(folder) / "edges.safetensors"

                def opened() -> WholeGraph:
                    return open_graph(path, weights.num_layers, capture.tokens, logits, tuple(probabilities.tolist()))

                now = time.perf_counter()
                progress("features", 0, 0)
                building = Building(weights, transcoder, capture, targets, probabilities, limits)
                now = stages.add("features", now)
                shared = self._hand_out(request, building, capture, targets)
                try:
                    building.build(
                        path, progress, lambda: self._partial.write(request, shown_so_far(request, opened())), shared
                    )
                finally:
                    if shared is not None:
                        shared.close()
                now = stages.add("sweep", now)
                progress("influence", 0, 0)
                graph = opened()
                influence, sums = compute_influence(graph.edges, graph.logit_weights)
                scores = graph_scores(graph.edges, influence, graph.logit_weights, sums)
                content, kept = pruned_content(
                    request, graph, influence, settings.node_threshold, settings.edge_threshold
                )
                now = stages.add("influence", now)
                progress("store", 0, 0)
                self._store.put_file(edges_key(request.graph_id), path)
                stages.add("store", now)
                document: Json = {
                    "model_revision": capture.model.revision,
                    "num_layers": weights.num_layers,
                    "tokens": [[token.id, token.text] for token in capture.tokens],
                    "logits": [[token.id, token.text] for token in logits],
                    "probabilities": probabilities.tolist(),
                    "statistics": {
                        "num_features": graph.edges.table.num_features,
                        "num_active_features": building.num_active,
                        "num_nodes": graph.edges.table.num_nodes,
                        "num_edges": len(graph.edges.values),
                        **kept,
                        "replacement_score": scores.replacement,
                        "completeness_score": scores.completeness,
                        "conservation_error": building.conservation_error(),
                        **({"num_rows_helped": shared.num_helped} if shared is not None else {}),
                        "seconds": time.perf_counter() - begun,
                        "stage_seconds": dict(stages.seconds),
                    },
                    "json": content,
                }
                self._cache.note(made_of, request)
                return self._keep(request, document)

        return await in_thread(compute)

    def _keep(self, request: GraphRequest, document: Json) -> Json:
        """Write a graph's document, unless somebody did; with it the graph is complete."""
        document = keep_json(self._store, graph_key(request.graph_id), document)
        self._partial.delete(request.graph_id)
        return self._summaries.whole(request, document)

    def _taken_over(self, request: GraphRequest, made_of: str, begun: float) -> Json | None:
        """Make a graph of the rows of one that was made before, pruned anew; None where there is none."""
        source = self._cache.find(made_of)
        if source is None:
            return None
        from_id, settings = source.pop("graph_id"), request.settings
        try:
            opened = self._opened.open(from_id)
            with tempfile.TemporaryDirectory(prefix="weft-graph-") as folder:
                path = Path(folder) / "edges.safetensors"
                self._store.get_to_file(edges_key(from_id), path)
                self._store.put_file(edges_key(request.graph_id), path)
        except (NotFoundError, FailedPreconditionError, DataLossError):
            # Deleted since it was found, or damaged: it is made anew.
            return None
        content, kept = pruned_content(
            request, opened.graph, opened.influence, settings.node_threshold, settings.edge_threshold
        )
        seconds = time.perf_counter() - begun
        statistics = {
            **source["statistics"], **kept, "seconds": seconds, "stage_seconds": {"store": seconds}, "reused": True,
        }  # fmt: skip
        self._cache.note(made_of, request)
        return self._keep(request, {**source, "json": content, "statistics": statistics})

    def _hand_out(
        self, request: GraphRequest, building: Building, capture: Capture, targets: Sequence[Target]
    ) -> SharedRows | None:
        """Offer rows to other replicas, where that is asked for and there are enough of them."""
        # A part is held dense, with its copies, by whoever computes or takes it.
        part_rows = min(self._part_rows, max(1, self._limits.memory_bytes // (32 * building.table.logit_start)))
        if not part_rows or building.num_active <= part_rows:
            return None
        shared = SharedRows(self._store, request.graph_id, part_rows, building.table.logit_start)
        shared.publish(capture, request.settings.transcoder, targets, building.features_digest)
        return shared
