# ruff: noqa: N802  gRPC names the methods
"""The methods of ActivationService that take a forward pass apart: from messages to the core and back."""

from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc.aio

from weft.activations.v1 import analyses_pb2
from weft_activations import converting, converting_analyses
from weft_activations.core.analyses.head_scores import score_heads
from weft_activations.core.analyses.logit_attribution import attribute_logits
from weft_activations.core.analyses.logit_lens import LensStart, logit_lens
from weft_activations.core.analyses.patching import sweep_patches
from weft_activations.core.analyses.paths import sweep_paths
from weft_activations.core.analyses.patterns import PatternsStart, attention_patterns
from weft_activations.core.inference import Inference
from weft_common.resource_names import parse_name
from weft_common.tensors import chunk_tensor

__all__ = ["AnalysisMethods"]

Context = grpc.aio.ServicerContext[object, object]


class AnalysisMethods:
    """Answers the RPCs of analyses; a part of `ActivationServicer`."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference

    async def LogitLens(
        self, request: analyses_pb2.LogitLensRequest, context: Context
    ) -> AsyncIterator[analyses_pb2.LogitLensResponse]:
        parts = logit_lens(
            self._inference,
            _model_id(request.model),
            converting.prompt_from_proto(request.prompt),
            depths=request.depths,
            positions=request.positions,
            num_top_tokens=request.num_top_tokens,
            target_token_id=request.target_token_id if request.HasField("target_token_id") else None,
        )
        async with aclosing(parts):
            async for part in parts:
                if isinstance(part, LensStart):
                    yield analyses_pb2.LogitLensResponse(header=converting_analyses.lens_header_to_proto(part))
                else:
                    yield analyses_pb2.LogitLensResponse(block=converting_analyses.lens_block_to_proto(part))

    async def AttributeLogits(
        self, request: analyses_pb2.AttributeLogitsRequest, context: Context
    ) -> analyses_pb2.AttributeLogitsResponse:
        found = await attribute_logits(
            self._inference,
            _model_id(request.model),
            converting.prompt_from_proto(request.prompt),
            token_ids=request.token_ids,
            position=request.position if request.HasField("position") else None,
            level=converting_analyses.level_from_proto(request.level),
            num_neurons=request.num_neurons,
        )
        return converting_analyses.attributed_to_proto(found)

    async def GetAttentionPatterns(
        self, request: analyses_pb2.GetAttentionPatternsRequest, context: Context
    ) -> AsyncIterator[analyses_pb2.GetAttentionPatternsResponse]:
        parts = attention_patterns(
            self._inference,
            _model_id(request.model),
            converting.prompt_from_proto(request.prompt),
            kind=converting_analyses.attention_kind_from_proto(request.kind),
            layers=request.layers,
            heads=request.heads,
            positions=request.positions,
        )
        async with aclosing(parts):
            async for part in parts:
                if isinstance(part, PatternsStart):
                    header = converting_analyses.patterns_header_to_proto(part)
                    yield analyses_pb2.GetAttentionPatternsResponse(header=header)
                    continue
                for chunk in chunk_tensor(*part):
                    yield analyses_pb2.GetAttentionPatternsResponse(chunk=chunk)

    async def ScoreHeads(
        self, request: analyses_pb2.ScoreHeadsRequest, context: Context
    ) -> analyses_pb2.ScoreHeadsResponse:
        scores = await score_heads(
            self._inference,
            _model_id(request.model),
            num_tokens=request.num_tokens,
            num_sequences=request.num_sequences,
            seed=request.seed,
        )
        return converting_analyses.head_scores_to_proto(scores)

    async def SweepPatches(
        self, request: analyses_pb2.SweepPatchesRequest, context: Context
    ) -> AsyncIterator[analyses_pb2.SweepResponse]:
        parts = sweep_patches(
            self._inference,
            _model_id(request.model),
            clean=converting.prompt_from_proto(request.clean),
            corrupted=converting.prompt_from_proto(request.corrupted),
            metric=converting_analyses.metric_from_proto(request.metric),
            components=request.components,
            layers=request.layers,
            heads=request.heads,
            positions=request.positions,
        )
        async with aclosing(parts):
            async for part in parts:
                yield converting_analyses.sweep_to_proto(part)

    async def SweepPaths(
        self, request: analyses_pb2.SweepPathsRequest, context: Context
    ) -> AsyncIterator[analyses_pb2.SweepResponse]:
        parts = sweep_paths(
            self._inference,
            _model_id(request.model),
            clean=converting.prompt_from_proto(request.clean),
            corrupted=converting.prompt_from_proto(request.corrupted),
            metric=converting_analyses.metric_from_proto(request.metric),
            receiver=request.receiver,
            senders=request.senders,
            layers=request.layers,
            heads=request.heads,
            positions=request.positions,
            receiver_heads=request.receiver_heads,
        )
        async with aclosing(parts):
            async for part in parts:
                yield converting_analyses.sweep_to_proto(part)


def _model_id(name: str) -> str:
    return parse_name(name, "models", field="model")
