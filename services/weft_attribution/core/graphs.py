"""Graphs as a whole: check a request, build, keep, list, delete, prune again, intervene."""

import asyncio
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from weft_attribution.core.checkpoints import load_linear_weights
from weft_attribution.core.gate import Gate
from weft_attribution.core.graph_cache import GraphCache
from weft_attribution.core.graph_json import graph_json, node_id, scan_name
from weft_attribution.core.influence import compute_influence, cumulative_share, graph_scores, prune
from weft_attribution.core.interventions import feature_additions, predict
from weft_attribution.core.open_graphs import OpenGraphs, read_request
from weft_attribution.core.partial_graphs import PartialGraphs
from weft_attribution.core.pipeline import (
    Building,
    Limits,
    Stages,
    WholeGraph,
    capture_hooks,
    choose_targets,
    open_graph,
)
from weft_attribution.core.ports import Capture, ModelInfo, ModelRunner, ProgressFn, Token
from weft_attribution.core.records import (
    GraphRequest,
    GraphSettings,
    check_threshold,
    edges_key,
    graph_key,
    request_key,
    summary_key,
)
from weft_attribution.core.shared_rows import SharedRows, delete_work
from weft_attribution.core.summaries import GraphSummaries
from weft_attribution.core.targets import Target, check_targets, name_targets, resolve_texts
from weft_attribution.core.transcoder import TranscoderReader
from weft_attribution.core.weights import LinearWeights
from weft_common.errors import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from weft_common.resource_names import check_id
from weft_store.documents import create_json, read_json
from weft_store.port import ObjectStore

__all__ = ["Change", "Graphs", "ModelFolder"]

Json = dict[str, Any]
Array = npt.NDArray[Any]
_GENERATOR = {"name": "weft", "version": "0.1.0", "url": "", "email": ""}
_READS_AT_ONCE = 16


@dataclass(frozen=True)
class Change:
    """A change to one feature node: a factor on its activation, or a new value."""

    node_id: str
    factor: float | None = None
    value: float | None = None


class ModelFolder:
    """Frozen weights by model, read once and kept while the same model is asked for."""

    def __init__(self, models_dir: Path) -> None:
        self._models_dir = models_dir
        self._lock = threading.Lock()
        self._loaded: tuple[str, LinearWeights] | None = None

    def weights(self, model: str) -> LinearWeights:
        """The frozen weights of a model; the last one asked for stays in memory."""
        with self._lock:
            if self._loaded is None or self._loaded[0] != model:
                self._loaded = None
                self._loaded = (model, load_linear_weights(self._models_dir / check_id(model, field="model")))
            return self._loaded[1]


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
        """
        Check a request against what there is.

        Returns:
            The model, the prompt's tokens up to the position explained, and the targets asked for.

        Raises:
            InvalidArgumentError, NotFoundError, FailedPreconditionError: What is wrong, and what to do.
        """
        settings.check()
        info = await self._runner.model(settings.model)
        transcoder = await asyncio.to_thread(TranscoderReader, self._store, settings.transcoder)
        manifest = transcoder.manifest
        if manifest.model != settings.model or (manifest.model_revision and manifest.model_revision != info.revision):
            raise FailedPreconditionError(
                f"transcoders/{settings.transcoder} was made for models/{manifest.model} at revision "
                f"{manifest.model_revision or 'unknown'}, "
                f"the request is for models/{settings.model} at {info.revision}; "
                "use a transcoder of that very model",
                field="spec.transcoder",
            )
        tokens = await self._runner.tokenize(settings.model, settings.prompt)
        longest = min(info.max_tokens, self._max_prompt_tokens)
        if len(tokens) > longest:
            raise InvalidArgumentError(
                f"spec.prompt has {len(tokens)} tokens; at most {longest} are explained here, shorten it",
                field="spec.prompt",
            )
        if settings.position >= len(tokens):
            raise InvalidArgumentError(
                f"spec.position is {settings.position}; the prompt's tokens are 0 to {len(tokens) - 1}",
                field="spec.position",
            )
        targets = await resolve_texts(self._runner, settings.model, settings.prompt, tokens, settings.explained)
        if settings.position >= 0:
            tokens = tokens[: settings.position + 1]
        if len(tokens) < 2:
            raise InvalidArgumentError(
                "one token is explained, and position 0 has no features; give a prompt of two tokens or more, "
                "or a later position",
                field="spec.prompt",
            )
        await asyncio.to_thread(check_targets, targets, info, transcoder)
        return info, tokens, targets

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
                        path, progress, lambda: self._partial.write(request, self._shown(request, opened())), shared
                    )
                finally:
                    if shared is not None:
                        shared.close()
                now = stages.add("sweep", now)
                progress("influence", 0, 0)
                graph = opened()
                influence, sums = compute_influence(graph.edges, graph.logit_weights)
                scores = graph_scores(graph.edges, influence, graph.logit_weights, sums)
                content, kept = self._pruned(
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
        content, kept = self._pruned(
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
        content, kept = self._pruned(request, graph, opened.influence, node_threshold, edge_threshold)
        return request, {**document, "json": content, "statistics": {**document["statistics"], **kept}}

    async def intervene(self, graph_id: str, changes: Sequence[Change]) -> Json:
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

    def _shown(self, request: GraphRequest, graph: WholeGraph) -> Json:
        """What a graph shows before all of its rows are there."""
        influence, _ = compute_influence(graph.edges, graph.logit_weights)
        settings = request.settings
        content, kept = self._pruned(request, graph, influence, settings.node_threshold, settings.edge_threshold)
        return {
            "tokens": [[token.id, token.text] for token in graph.nodes.tokens],
            "statistics": {"num_features": graph.edges.table.num_features, **kept},
            "json": content,
        }

    def _pruned(
        self, request: GraphRequest, graph: WholeGraph, influence: Array, node_threshold: float, edge_threshold: float
    ) -> tuple[Json, Json]:
        settings = request.settings
        pruned = prune(
            graph.edges, influence, graph.logit_weights, node_threshold=node_threshold, edge_threshold=edge_threshold
        )
        metadata = {
            "slug": request.graph_id,
            "scan": scan_name(settings.model),
            "prompt": settings.prompt,
            "prompt_tokens": [token.text for token in graph.nodes.tokens],
            "transcoder_list": [settings.transcoder],
            "schema_version": 1,
            "node_threshold": node_threshold,
            "feature_details": {"feature_json_base_url": "", "neuronpedia_source_set": ""},
            "info": {
                "description": "",
                "creator_name": "weft",
                "creator_url": "",
                "source_urls": [],
                "generator": _GENERATOR,
                "create_time_ms": int(request.create_s * 1000),
            },
            "generation_settings": {
                "max_n_logits": settings.max_logits,
                "desired_logit_prob": settings.logit_probability,
                "batch_size": settings.batch_size,
                "max_feature_nodes": graph.edges.table.num_features,
            },
            "pruning_settings": {
                "node_threshold": node_threshold,
                "edge_threshold": edge_threshold,
                "node_share": pruned.node_share,
                "edge_share": pruned.edge_share,
            },
        }
        content = graph_json(graph.nodes, pruned, cumulative_share(influence), metadata)
        return content, {"num_nodes_kept": len(content["nodes"]), "num_edges_kept": len(content["links"])}


def _measured(summary: Json) -> Json:
    """What was measured on a graph, apart from the graph itself."""
    return {key: summary[key] for key in ("interventions", "faithfulness") if key in summary}


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


async def _in_thread(compute: Callable[[], Json]) -> Json:
    """Run in a thread; a cancelled caller still waits for the thread to notice."""
    task = asyncio.ensure_future(asyncio.to_thread(compute))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
