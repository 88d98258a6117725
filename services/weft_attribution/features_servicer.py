# ruff: noqa: N802  gRPC names the methods
"""weft.features.v1.FeatureService: what a feature reads and writes."""

import asyncio
import re

import grpc.aio

from weft.features.v1 import service_pb2, service_pb2_grpc
from weft_attribution.core.feature_cards import FeatureCard, feature_logits, name_tokens
from weft_attribution.core.graphs import ModelFolder
from weft_attribution.core.ports import ModelRunner
from weft_attribution.core.transcoder import TranscoderReader
from weft_common.errors import InvalidArgumentError
from weft_common.resource_names import parse_child_name
from weft_store.port import ObjectStore

__all__ = ["FeatureServicer"]

Context = grpc.aio.ServicerContext[object, object]
_FEATURE = re.compile(r"(\d{1,6})-(\d{1,9})")
_MAX_LOGITS = 100


class FeatureServicer(service_pb2_grpc.FeatureServiceServicer):
    """Answers the RPCs on features."""

    def __init__(self, store: ObjectStore, runner: ModelRunner, models: ModelFolder) -> None:
        self._store = store
        self._runner = runner
        self._models = models

    async def GetFeature(self, request: service_pb2.GetFeatureRequest, context: Context) -> service_pb2.Feature:
        transcoder, feature = parse_child_name(request.name, "transcoders", "features")
        place = _FEATURE.fullmatch(feature)
        if place is None:
            raise InvalidArgumentError(
                f"name ends in {feature!r}; a feature is {{layer}}-{{index}}, for example 12-345", field="name"
            )
        if not 0 <= request.num_logits <= _MAX_LOGITS:
            raise InvalidArgumentError(
                f"num_logits is {request.num_logits}; give 1 to {_MAX_LOGITS}, or 0 for 10", field="num_logits"
            )
        layer, index = int(place[1]), int(place[2])

        def describe() -> tuple[str, FeatureCard]:
            reader = TranscoderReader(self._store, transcoder)
            weights = self._models.weights(reader.manifest.model)
            return reader.manifest.model, feature_logits(weights, reader, layer, index, request.num_logits or 10)

        model, card = await asyncio.to_thread(describe)
        card = await name_tokens(self._runner, model, card)
        return service_pb2.Feature(
            name=request.name,
            layer=layer,
            index=index,
            decoder_norms=card.decoder_norms,
            encoder_bias=card.encoder_bias,
            threshold=card.threshold,
            top_logits=[
                service_pb2.FeatureLogit(token_id=token.id, text=token.text, weight=weight)
                for token, weight in card.top
            ],
            bottom_logits=[
                service_pb2.FeatureLogit(token_id=token.id, text=token.text, weight=weight)
                for token, weight in card.bottom
            ],
        )
