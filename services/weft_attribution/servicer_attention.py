# ruff: noqa: N802 (RPCs are named as in the proto)
"""The RPCs of AttributionService on the attention behind finished graphs."""

import grpc.aio

from weft.attribution.v1 import attention_pb2, service_pb2_grpc
from weft_attribution import converting_attention as converting
from weft_attribution.core.through_attention import AttentionReading
from weft_attribution.naming import graph_id_of

__all__ = ["AttentionRpcs"]

Context = grpc.aio.ServicerContext[object, object]
_DEFAULT_PARTS = 100
_DEFAULT_PAIRS = 50


class AttentionRpcs(service_pb2_grpc.AttributionServiceServicer):
    """Answers questions on the attention behind finished graphs, by the domain that is put into `attention`."""

    attention: AttentionReading

    async def SplitEdge(
        self, request: attention_pb2.SplitEdgeRequest, context: Context
    ) -> attention_pb2.SplitEdgeResponse:
        found = await self.attention.split(
            graph_id_of(request.name),
            request.source_node_id,
            request.target_node_id,
            max_parts=request.max_parts or _DEFAULT_PARTS,
        )
        return converting.split_to_proto(found)

    async def ExplainAttention(
        self, request: attention_pb2.ExplainAttentionRequest, context: Context
    ) -> attention_pb2.ExplainAttentionResponse:
        max_pairs = request.max_pairs or _DEFAULT_PAIRS
        found = await self.attention.explain(
            graph_id_of(request.name),
            layer=request.layer,
            head=request.head,
            query=request.query_position,
            key=request.key_position,
            max_pairs=max_pairs,
        )
        return converting.score_to_proto(found, max_pairs)
