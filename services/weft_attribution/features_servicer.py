# ruff: noqa: N802  gRPC names the methods
"""weft.features.v1.FeatureService: what a feature reads and writes, where it is active, and which are like it."""

import asyncio
from dataclasses import dataclass

import grpc.aio

from weft.features.v1 import service_pb2
from weft_attribution import converting_features as converting
from weft_attribution.core.dataset_holding import DatasetHolding
from weft_attribution.core.feature_cards import FeatureCard, feature_logits, name_tokens
from weft_attribution.core.feature_export.exporting import FeatureExports
from weft_attribution.core.feature_graphs import FeatureGraphs
from weft_attribution.core.feature_index.indexing import FeatureIndexing
from weft_attribution.core.feature_index.matching import FeatureMatching
from weft_attribution.core.feature_index.on_prompt import PromptActivations
from weft_attribution.core.feature_index.opened import FeatureRow, OpenIndex
from weft_attribution.core.feature_index.queries import FeatureQueries
from weft_attribution.core.feature_ports import Examples, Window
from weft_attribution.core.model_folder import ModelFolder
from weft_attribution.core.open_graphs import OpenGraphs
from weft_attribution.core.ports import ModelRunner
from weft_attribution.core.question_turns import Turns
from weft_attribution.core.steered_text import SteeredText
from weft_attribution.core.token_pieces import TokenPieces
from weft_attribution.core.transcoder import TranscoderReader
from weft_attribution.label_trailers import tell_passed_over
from weft_attribution.servicer_feature_export import ExportRpcs
from weft_attribution.servicer_feature_index import IndexRpcs
from weft_attribution.servicer_feature_queries import QueryRpcs
from weft_attribution.servicer_interpretation import InterpretationRpcs
from weft_attribution.servicer_steered_text import SteeredTextRpcs
from weft_common.errors import InvalidArgumentError
from weft_common.operations import OperationManager
from weft_store.port import ObjectStore

__all__ = ["FeatureDomain", "FeatureServicer"]

Context = grpc.aio.ServicerContext[object, object]
_MAX_LOGITS = 100
_QUIET_SHOWN = 10
_CARD = {"decoder_norms", "encoder_bias", "threshold", "top_logits", "bottom_logits", "target_logits"}
_ROW = {"statistics", "neighbours", "partners"}


@dataclass(frozen=True)
class FeatureDomain:
    """What answers."""

    indexing: FeatureIndexing
    queries: FeatureQueries
    matching: FeatureMatching
    on_prompt: PromptActivations
    steered: SteeredText
    opened: OpenGraphs
    exports: FeatureExports
    graphs: FeatureGraphs
    holding: DatasetHolding


@dataclass(frozen=True)
class _Known:
    """What was read of a feature, as far as it was asked for and is there."""

    model: str
    card: FeatureCard | None
    index: OpenIndex | None
    row: FeatureRow | None
    examples: Examples | None
    quiet: tuple[Window, ...]

    @property
    def token_ids(self) -> list[int]:
        """All tokens of its text, each once."""
        windows = (*self.quiet, *(self.examples.top + self.examples.by_quantile if self.examples else ()))
        return sorted({token_id for window in windows for token_id in window.token_ids})


class FeatureServicer(IndexRpcs, QueryRpcs, InterpretationRpcs, ExportRpcs, SteeredTextRpcs):
    """
    Answers the RPCs on features.

    Args:
        store: The bucket.
        runner: The base model.
        models: Frozen weights.
        domain: What answers beside them.
        work: Where long work is kept.
    """

    def __init__(
        self,
        store: ObjectStore,
        runner: ModelRunner,
        models: ModelFolder,
        domain: FeatureDomain,
        work: OperationManager,
    ) -> None:
        self.store, self._models = store, models
        self.runner, self.work = runner, work
        self.indexing, self.holding, self.queries = domain.indexing, domain.holding, domain.queries
        self.matching, self.on_prompt, self.opened = domain.matching, domain.on_prompt, domain.opened
        self.steered, self.exports = domain.steered, domain.exports
        self.indexes, self.graphs, self.turns = domain.queries.indexes, domain.graphs, Turns()
        # A model that answers slowly holds up no questions over transcoders.
        self.steering_turns = Turns(asked="steered texts")

    async def GetFeature(self, request: service_pb2.GetFeatureRequest, context: Context) -> service_pb2.Feature:
        transcoder, layer, index = converting.feature_place(request.name)
        if not 0 <= request.num_logits <= _MAX_LOGITS:
            raise InvalidArgumentError(
                f"num_logits is {request.num_logits}; give 1 to {_MAX_LOGITS}, or 0 for 10", field="num_logits"
            )
        everything = [field.name for field in service_pb2.Feature.DESCRIPTOR.fields]
        usual = [name for name in everything if name not in converting.ON_REQUEST]
        wanted = converting.wanted_fields(request.read_mask, usual)
        known = await asyncio.to_thread(self._read, transcoder, layer, index, request.num_logits or 10, wanted)
        labels = await self.queries.labels.labels(transcoder)
        tell_passed_over(context, labels)
        feature = converting.summary_to_proto(transcoder, layer, index, known.index, labels.get((layer, index)))
        if known.card is not None:
            converting.card_into_proto(feature, await name_tokens(self.runner, known.model, known.card))
        if known.row is not None:
            converting.row_into_proto(feature, known.row)
        ids = known.token_ids
        piece_of = await TokenPieces(self.runner, known.model).by_id(ids)
        if known.examples is not None:
            feature.examples.extend(converting.examples_to_proto(known.examples, piece_of))
        feature.quiet_examples.extend(converting.window_to_proto(window, piece_of) for window in known.quiet)
        return converting.masked(feature, request.read_mask)

    def _read(self, transcoder: str, layer: int, index: int, num_logits: int, wanted: set[str]) -> _Known:
        reader = TranscoderReader(self.store, transcoder)
        model, card = reader.manifest.model, None
        opened = self.indexes.find(transcoder)
        if wanted & _CARD or opened is None:
            weights = self._models.weights(model)
            with_targets = "target_logits" in wanted
            card = feature_logits(weights, reader, layer, index, num_logits, with_targets=with_targets)
        if opened is None:
            return _Known(model, card, None, None, None, ())
        opened.number(layer, index)
        return _Known(
            model,
            card,
            opened,
            opened.row(layer, index) if wanted & _ROW else None,
            opened.examples(layer, index) if "examples" in wanted else None,
            tuple(opened.quiet(layer, index, _QUIET_SHOWN)) if "quiet_examples" in wanted else (),
        )
