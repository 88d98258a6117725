"""
Finished graphs whose frozen model is at hand again: what their edges were computed from, captured anew.

The last one asked for stays in memory; its decoders lie in scratch files where they are large.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from weft_attribution.core.features import ActiveFeatures, find_features
from weft_attribution.core.model_folder import ModelFolder
from weft_attribution.core.open_graphs import OpenGraph, OpenGraphs
from weft_attribution.core.operator import FrozenOperator
from weft_attribution.core.pipeline import capture_hooks
from weft_attribution.core.ports import Capture, ModelInfo, ModelRunner, Token
from weft_attribution.core.records import GraphSettings
from weft_attribution.core.skips import read_skips
from weft_attribution.core.sweep import Targets, make_targets
from weft_attribution.core.targets import Target, explain
from weft_attribution.core.transcoder import TranscoderReader
from weft_common.errors import FailedPreconditionError
from weft_store.port import ObjectStore

__all__ = ["Check", "FrozenGraph", "FrozenGraphs"]

Array = npt.NDArray[Any]
Check = Callable[[GraphSettings], Awaitable[tuple[ModelInfo, tuple[Token, ...], tuple[Target, ...]]]]
"""Resolves how a graph was asked for against the model that there is now."""


@dataclass(frozen=True)
class FrozenGraph:
    """
    A finished graph and the linear model behind it.

    Args:
        opened: The graph.
        transcoder: Its transcoder.
        operator: The frozen model on the prompt.
        features: All features that are active on it, those without a node too.
        targets: Features, then what is explained, as rows.
    """

    opened: OpenGraph
    transcoder: TranscoderReader
    operator: FrozenOperator
    features: ActiveFeatures
    targets: Targets

    @cached_property
    def token_ids(self) -> Array:
        """The prompt's tokens."""
        return np.array([token.id for token in self.opened.graph.nodes.tokens], dtype=np.int64)

    @cached_property
    def _feature_of(self) -> Mapping[tuple[int, int, int], int]:
        features = self.features
        keys = zip(features.layer_N.tolist(), features.position_N.tolist(), features.index_N.tolist(), strict=True)
        return {key: number for number, key in enumerate(keys)}

    def feature(self, node: int) -> int:
        """Which of the active features a feature node is."""
        nodes = self.opened.graph.nodes
        key = int(nodes.layer_N[node]), int(nodes.position_N[node]), int(nodes.index_N[node])
        if key not in self._feature_of:
            raise FailedPreconditionError(
                f"feature {key[2]} of layer {key[0]} is no longer active at position {key[1]}: model or transcoder "
                f"have changed since graphs/{self.opened.request.graph_id} was made; make it again"
            )
        return self._feature_of[key]


class FrozenGraphs:
    """
    Opens finished graphs with their frozen models.

    Args:
        store: The bucket.
        runner: The base model.
        models: Frozen weights.
        opened: Finished graphs.
        check: Resolves a graph's targets.
        max_features: Most active features accepted.
        memory_bytes: Decoders beyond half of it lie in scratch files.
    """

    def __init__(
        self,
        store: ObjectStore,
        runner: ModelRunner,
        models: ModelFolder,
        opened: OpenGraphs,
        check: Check,
        *,
        max_features: int,
        memory_bytes: int,
    ) -> None:
        self._store = store
        self._runner = runner
        self._models = models
        self._opened = opened
        self._check = check
        self._max_features = max_features
        self._memory_bytes = memory_bytes
        self._lock = asyncio.Lock()
        self._last: FrozenGraph | None = None

    async def open(self, graph_id: str) -> FrozenGraph:
        """
        Open a finished graph.

        Raises:
            NotFoundError, FailedPreconditionError: It is not there, not finished, or its model has changed.
        """
        opened = await asyncio.to_thread(self._opened.open, graph_id)
        # One at a time: each takes a forward pass and much memory.
        async with self._lock:
            if self._last is None or self._last.opened is not opened:
                self._last = None
                self._last = await self._freeze(opened)
            return self._last

    async def _freeze(self, opened: OpenGraph) -> FrozenGraph:
        settings = opened.request.settings
        _, tokens, asked = await self._check(settings)
        transcoder = await asyncio.to_thread(TranscoderReader, self._store, settings.transcoder)
        weights = await asyncio.to_thread(self._models.weights, settings.model)
        hooks = capture_hooks(transcoder.manifest.input_hook, has_post_norms=weights.has_post_norms)
        capture = await self._runner.capture(settings.model, [token.id for token in tokens], hooks)
        check_revision(opened, capture)
        targets = asked or tuple(Target(token_id=token.id) for token in opened.graph.nodes.logits)

        def compute() -> FrozenGraph:
            with torch.no_grad():
                skips = read_skips(weights, transcoder)
                operator = FrozenOperator(weights, capture.tensors, num_positions=len(tokens), skips=skips)
                features = find_features(
                    weights,
                    transcoder,
                    capture.tensors,
                    skips,
                    num_positions=len(tokens),
                    max_features=self._max_features,
                    max_writer_bytes=self._memory_bytes // 2,
                )
                explained = explain(operator, transcoder, capture.tensors, targets)
                return FrozenGraph(opened, transcoder, operator, features, make_targets(operator, features, explained))

        return await asyncio.to_thread(compute)


def check_revision(opened: OpenGraph, capture: Capture) -> None:
    """Check that a prompt was captured from the model that a graph was made with. FailedPreconditionError."""
    if capture.model.revision != opened.model_revision:
        raise FailedPreconditionError(
            f"graphs/{opened.request.graph_id} was made with revision {opened.model_revision or 'unknown'} of "
            f"{capture.model.name}, the activations service runs {capture.model.revision or 'unknown'}; make it again"
        )
