# ruff: noqa: N802 (RPCs are named as in the proto)
"""The RPCs of AttributionService that read finished graphs."""

import asyncio

import grpc.aio

from weft.attribution.v1 import reading_pb2, service_pb2_grpc
from weft_attribution import converting_reading as converting
from weft_attribution.core.reading import GraphReading
from weft_attribution.naming import graph_id_of

__all__ = ["ReadingRpcs"]

Context = grpc.aio.ServicerContext[object, object]
_DEFAULT_PATHS = 10
_DEFAULT_SUPERNODES = 12
_DEFAULT_NODE_THRESHOLD = 0.8
_DEFAULT_COMPARED_NODES = 200
_DEFAULT_COMPARED_EDGES = 1_000


class ReadingRpcs(service_pb2_grpc.AttributionServiceServicer):
    """Answers questions on finished graphs, by the domain that is put into `reading`."""

    reading: GraphReading

    async def ScoreSubgraph(
        self, request: reading_pb2.ScoreSubgraphRequest, context: Context
    ) -> reading_pb2.ScoreSubgraphResponse:
        whole, part = await asyncio.to_thread(self.reading.score, graph_id_of(request.name), tuple(request.node_ids))
        return converting.score_to_proto(whole, part)

    async def FindPaths(self, request: reading_pb2.FindPathsRequest, context: Context) -> reading_pb2.FindPathsResponse:
        opened, found = await asyncio.to_thread(
            self.reading.paths,
            graph_id_of(request.name),
            request.source_node_id,
            request.target_node_id,
            request.num_paths or _DEFAULT_PATHS,
        )
        return converting.paths_to_proto(opened, found)

    async def SummarizeGraph(
        self, request: reading_pb2.SummarizeGraphRequest, context: Context
    ) -> reading_pb2.SummarizeGraphResponse:
        opened, summary = await self.reading.summary(
            graph_id_of(request.name),
            max_supernodes=request.max_supernodes or _DEFAULT_SUPERNODES,
            likeness=converting.likeness_from_proto(request.likeness),
            node_threshold=request.node_threshold or _DEFAULT_NODE_THRESHOLD,
        )
        return converting.summary_to_proto(opened, summary)

    async def CompareGraphs(
        self, request: reading_pb2.CompareGraphsRequest, context: Context
    ) -> reading_pb2.CompareGraphsResponse:
        first, other, comparison = await asyncio.to_thread(
            lambda: self.reading.compare(
                graph_id_of(request.name),
                graph_id_of(request.other, "other"),
                max_nodes=request.max_nodes or _DEFAULT_COMPARED_NODES,
                max_edges=request.max_edges or _DEFAULT_COMPARED_EDGES,
            )
        )
        return converting.comparison_to_proto(first, other, comparison)
