"""Graphs as a whole: check a request, have it made, list, delete, prune again, intervene."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from weft_attribution.core.gate import Gate
from weft_attribution.core.graph_cache import GraphCache
from weft_attribution.core.graph_checks import check_settings
from weft_attribution.core.graph_making import GraphMaking
from weft_attribution.core.intervening import Change, Intervening
from weft_attribution.core.model_folder import ModelFolder
from weft_attribution.core.open_graphs import OpenGraphs, read_request
from weft_attribution.core.partial_graphs import PartialGraphs
from weft_attribution.core.pipeline import Limits
from weft_attribution.core.ports import ModelInfo, ModelRunner, ProgressFn, Token
from weft_attribution.core.pruned_content import pruned_content
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
from weft_attribution.core.summaries import GraphSummaries
from weft_attribution.core.targets import Target
from weft_common.errors import AlreadyExistsError, NotFoundError
from weft_store.documents import create_json
from weft_store.port import ObjectStore

__all__ = ["Graphs"]

Json = dict[str, Any]
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
        self._store, self._runner, self._max_prompt_tokens = store, runner, max_prompt_tokens
        self._opened = opened or OpenGraphs(store)
        self._summaries, self._partial, self._cache = GraphSummaries(store), PartialGraphs(store), GraphCache(store)
        self._intervening = Intervening(store, runner, self._opened, self._summaries)
        self._making = GraphMaking(
            store,
            runner,
            models,
            Limits(batch_size=0, workers=workers, max_active=max_features, max_features=0, memory_bytes=memory_bytes),
            part_rows=part_rows,
            gate=gate or Gate(),
            opened=self._opened,
            summaries=self._summaries,
        )

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
        return self._summaries.document(request)

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
        Make a graph, where it is not there yet: as `GraphMaking`.

        Returns:
            The finished graph's document.
        """
        there = await asyncio.to_thread(self.finished, request)
        if there is not None:
            return there
        begun = time.perf_counter()
        progress("capture", 0, 0)
        info, tokens, asked = await self.check(request.settings)
        return await self._making.make(request, info, tokens, asked, progress, begun)

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
