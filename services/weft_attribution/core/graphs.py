"""Graphs as a whole: check a request, build, keep, list, delete, prune again, intervene."""

import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy.typing as npt

from weft_attribution.core.gate import Gate
from weft_attribution.core.graph_cache import GraphCache
from weft_attribution.core.graph_checks import check_settings
from weft_attribution.core.influence import compute_influence, graph_scores
from weft_attribution.core.intervening import Change, Intervening
from weft_attribution.core.model_folder import ModelFolder
from weft_attribution.core.open_graphs import OpenGraphs, read_request
from weft_attribution.core.partial_graphs import PartialGraphs
from weft_attribution.core.pipeline import Building, Limits, Stages, capture_hooks
from weft_attribution.core.ports import Capture, ModelInfo, ModelRunner, ProgressFn, Token
from weft_attribution.core.pruned_content import pruned_content, shown_so_far
from weft_attribution.core.records import (
    GraphRequest,
    GraphSettings,
    check_threshold,
    edges_key,
    graph_key,
    request_key,
    summary_key,
)
from weft_attribution.core.row_parts import delete_work
from weft_attribution.core.shared_rows import SharedRows
from weft_attribution.core.summaries import GraphSummaries
from weft_attribution.core.targets import Target, choose_targets, name_targets
from weft_attribution.core.transcoder import TranscoderReader
from weft_attribution.core.whole_graph import WholeGraph, open_graph
from weft_common.errors import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    NotFoundError,
)
from weft_store.documents import create_json, read_json
from weft_store.port import ObjectStore

__all__ = ["Graphs"]

Json = dict[str, Any]
Array = npt.NDArray[Any]
_READS_AT_ONCE = 16


class Graphs:
    """
    The domain behind AttributionService.

    Args:
        store: The bucket.
        runner: The base model.
        models: Frozen weights.
        max_prompt_tokens: Longest prompt accepted.
        workers: Threads of one graph's sweep.
        part_rows: Rows that another replica may take at a time; 0 hands none out.
        gate: Held while a graph is made.
        max_features: Most active features accepted.
        memory_bytes: For the sweep of a graph.
        opened: Finished graphs that are read; others may read them too.
    """

    def __init__(
        self,
        store: ObjectStore,
        runner: ModelRunner,
        models: ModelFolder,
        *,
        max_prompt_tokens: int,
        max_features: int,
        memory_bytes: int = 1 << 30,
        workers: int = 1,
        part_rows: int = 0,
        gate: Gate | None = None,
        opened: OpenGraphs | None = None,
    ) -> None:
        self._store = store
        self._opened = opened or OpenGraphs(store)
        self._summaries = GraphSummaries(store)
        self._intervening = Intervening(store, runner, self._opened, self._summaries)
        self._partial = PartialGraphs(store)
        self._cache = GraphCache(store)
        self._runner = runner
        self._models = models
        self._max_prompt_tokens = max_prompt_tokens
        self._max_features = max_features
        self._memory_bytes = memory_bytes
        self._workers = workers
        self._part_rows, self._gate = part_rows, gate or Gate()

    async def check(self, settings: GraphSettings) -> tuple[ModelInfo, tuple[Token, ...], tuple[Target, ...]]:
        """Check a request against what there is: as `check_settings`."""
        return await check_settings(self._store, self._runner, settings, self._max_prompt_tokens)

    def begin(self, request: GraphRequest) -> GraphRequest:
        """
        Write a request down; the same one again gives the one that is there.

        Raises:
            AlreadyExistsError: The id stands for another graph.
        """
        try:
            create_json(self._store, request_key(request.graph_id), request.to_json())
        except AlreadyExistsError:
            there = self.request(request.graph_id)
            if there.request_id != request.request_id or not request.request_id or there.settings != request.settings:
                raise AlreadyExistsError(
                    f"graphs/{request.graph_id} is there already; choose another id or delete it", field="graph_id"
                ) from None
            return there
        return request

    def request(self, graph_id: str) -> GraphRequest:
        """How a graph was asked for."""
        return read_request(self._store, graph_id)

    def finished(self, request: GraphRequest) -> Json | None:
        """The finished graph's document with the interventions on it, if it is finished."""
        try:
            document, _ = read_json(self._store, graph_key(request.graph_id))
        except NotFoundError:
            return None
        return {**document, **_measured(self._summaries.write(request, document))}

    def summary(self, request: GraphRequest) -> Json | None:
        """What `finished` gives, less the graph itself and much faster."""
        return self._summaries.get(request)

    def partial(self, request: GraphRequest, seen: str = "") -> tuple[Json, str] | None:
        """What there is of a graph that is being made, and its mark; None where it is what `seen` marks, or nothing."""
        return self._partial.read(request, seen)

    def requests(self) -> list[GraphRequest]:
        """How every graph there is was asked for."""

        def find(graph_id: str) -> GraphRequest | None:
            try:
                return self.request(graph_id)
            except NotFoundError:
                return None

        # Small objects, of which a bucket on a network answers many at once.
        with ThreadPoolExecutor(_READS_AT_ONCE) as threads:
            return [found for found in threads.map(find, self._store.list_folders("graphs/")) if found is not None]

    def delete(self, graph_id: str) -> None:
        """Remove a graph: what makes it complete first, its record last."""
        self.request(graph_id)
        for key in (graph_key(graph_id), summary_key(graph_id), edges_key(graph_id)):
            self._store.delete(key)
        self._partial.delete(graph_id)
        self._cache.forget(graph_id)
        delete_work(self._store, graph_id)
        self._store.delete(request_key(graph_id))

    async def build(self, request: GraphRequest, progress: ProgressFn) -> Json:
        """
        Compute a graph and store it; what a dead process left behind is computed again.

        Returns:
            The finished graph's document.
        """
        there = await asyncio.to_thread(self.finished, request)
        if there is not None:
            return there
        stages, begun = Stages(), time.perf_counter()
        settings = request.settings
        progress("capture", 0, 0)
        info, tokens, asked = await self.check(settings)
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

        def compute() -> Json:
            with self._gate.making(), tempfile.TemporaryDirectory(prefix="weft-graph-") as folder:
                path = Path(folder) / "edges.safetensors"

                def opened() -> WholeGraph:
                    return open_graph(path, weights.num_layers, capture.tokens, logits, tuple(probabilities.tolist()))

                now = time.perf_counter()
                progress("features", 0, 0)
                building = Building(weights, transcoder, capture, targets, probabilities, self._limits(settings))
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

        return await _in_thread(compute)

    def _keep(self, request: GraphRequest, document: Json) -> Json:
        """Write a graph's document, unless somebody did; with it the graph is complete."""
        try:
            create_json(self._store, graph_key(request.graph_id), document)
        except AlreadyExistsError:
            document = read_json(self._store, graph_key(request.graph_id))[0]
        self._partial.delete(request.graph_id)
        return {**document, **_measured(self._summaries.write(request, document))}

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

    def pruned(self, graph_id: str, node_threshold: float, edge_threshold: float) -> tuple[GraphRequest, Json]:
        """The finished graph's document with other thresholds; nothing stored changes."""
        check_threshold(node_threshold, "node_threshold")
        check_threshold(edge_threshold, "edge_threshold")
        opened = self._opened.open(graph_id)
        request, graph = opened.request, opened.graph
        document = self.finished(request)
        if document is None:
            raise NotFoundError(f"graphs/{graph_id} was deleted meanwhile")
        content, kept = pruned_content(request, graph, opened.influence, node_threshold, edge_threshold)
        return request, {**document, "json": content, "statistics": {**document["statistics"], **kept}}

    async def intervene(self, graph_id: str, changes: Sequence[Change]) -> Json:
        """Change features, in the graph and in the model, and keep the result with the graph: as `Intervening`."""
        return await self._intervening.change(graph_id, changes)

    def _hand_out(
        self, request: GraphRequest, building: Building, capture: Capture, targets: Sequence[Target]
    ) -> SharedRows | None:
        """Offer rows to other replicas, where that is asked for and there are enough of them."""
        # A part is held dense, with its copies, by whoever computes or takes it.
        part_rows = min(self._part_rows, max(1, self._memory_bytes // (32 * building.table.logit_start)))
        if not part_rows or building.num_active <= part_rows:
            return None
        shared = SharedRows(self._store, request.graph_id, part_rows, building.table.logit_start)
        shared.publish(capture, request.settings.transcoder, targets, building.features_digest)
        return shared

    def _limits(self, settings: GraphSettings) -> Limits:
        return Limits(
            batch_size=settings.batch_size,
            workers=self._workers,
            max_active=self._max_features,
            max_features=settings.max_features,
            memory_bytes=self._memory_bytes,
        )


def _measured(summary: Json) -> Json:
    """What was measured on a graph, apart from the graph itself."""
    return {key: summary[key] for key in ("interventions", "faithfulness") if key in summary}


async def _in_thread(compute: Callable[[], Json]) -> Json:
    """Run in a thread; a cancelled caller still waits for the thread to notice."""
    task = asyncio.ensure_future(asyncio.to_thread(compute))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
