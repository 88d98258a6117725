"""Attribution graphs: made, read, pruned, tested by interventions."""

import uuid
from collections.abc import AsyncIterator, Sequence

from google.longrunning import operations_pb2

from weft.attribution.v1 import (
    attention_pb2,
    batches_pb2,
    messages_pb2,
    reading_pb2,
    service_pb2,
    service_pb2_grpc,
    steering_pb2,
)
from weft_client.aio.calls import Patience, pages, stream, unary
from weft_client.aio.connection import AsyncConnection
from weft_client.names import full_name
from weft_common.errors import WeftError

INTERVENE_S = 600.0
READ_S = 300.0
"""Deadline of what goes over all edges of a graph, in seconds."""


class AsyncGraphs:
    """Graphs of the attribution service."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    @property
    def _stub(self) -> "service_pb2_grpc.AttributionServiceAsyncStub":
        return service_pb2_grpc.AttributionServiceStub(self._connection.channel("attribution"))

    async def create(
        self, graph_id: str, *, spec: messages_pb2.GraphSpec, validate_only: bool = False, request_id: str = ""
    ) -> operations_pb2.Operation:
        """
        Start a graph; wait for it with `operations.wait`, then `get` it with its JSON.

        Args:
            graph_id: Lower-case letters, digits and `-`.
            spec: Model, transcoder, prompt and settings; 0 means the service's default.
            validate_only: Check everything and change nothing.
            request_id: A UUID of your own, to repeat this very request; one is made where there is none.
        """
        request = service_pb2.CreateGraphRequest(
            graph_id=graph_id, spec=spec, validate_only=validate_only, request_id=request_id or str(uuid.uuid4())
        )
        return await unary(self._stub.CreateGraph, request)

    async def get(self, name: str) -> messages_pb2.Graph:
        """Describe one graph, JSON included."""
        return await unary(self._stub.GetGraph, service_pb2.GetGraphRequest(name=full_name("graphs", name)))

    def list(self) -> AsyncIterator[messages_pb2.Graph]:
        """All graphs, newest first, without JSON."""
        return pages(self._stub.ListGraphs, service_pb2.ListGraphsRequest(), lambda page: page.graphs)

    async def watch(self, name: str) -> AsyncIterator[service_pb2.WatchGraphResponse]:
        """Progress of a graph until it is complete; a service that starts again is waited for."""
        patience = Patience(None)
        request = service_pb2.WatchGraphRequest(name=full_name("graphs", name))
        while True:
            try:
                async for news in stream(self._stub.WatchGraph, request, service_pb2.WatchGraphResponse):
                    patience.heard()
                    yield news
                return
            except WeftError as error:
                await patience.bear(error)

    async def prune(self, name: str, *, node_threshold: float, edge_threshold: float) -> messages_pb2.Graph:
        """The stored graph pruned to other thresholds; changes nothing that is stored."""
        request = service_pb2.PruneGraphRequest(
            name=full_name("graphs", name), node_threshold=node_threshold, edge_threshold=edge_threshold
        )
        return await unary(self._stub.PruneGraph, request)

    async def intervene(
        self,
        name: str,
        *,
        interventions: Sequence[messages_pb2.FeatureIntervention],
        timeout_s: float | None = INTERVENE_S,
    ) -> messages_pb2.InterventionResult:
        """Change features of a graph in the model and compare the logits with what the graph says."""
        request = service_pb2.InterveneRequest(name=full_name("graphs", name), interventions=interventions)
        return await unary(self._stub.Intervene, request, timeout_s=timeout_s)

    async def score(self, name: str, *, node_ids: Sequence[str]) -> reading_pb2.ScoreSubgraphResponse:
        """Scores of the whole graph, and of the part that these nodes make up: other features count as errors."""
        request = reading_pb2.ScoreSubgraphRequest(name=full_name("graphs", name), node_ids=node_ids)
        return await unary(self._stub.ScoreSubgraph, request, timeout_s=READ_S)

    async def paths(self, name: str, *, source: str, target: str, num_paths: int = 10) -> reading_pb2.FindPathsResponse:
        """The strongest paths from one node to another, over all edges of the whole graph."""
        request = reading_pb2.FindPathsRequest(
            name=full_name("graphs", name), source_node_id=source, target_node_id=target, num_paths=num_paths
        )
        return await unary(self._stub.FindPaths, request, timeout_s=READ_S)

    async def summarize(
        self,
        name: str,
        *,
        max_supernodes: int = 12,
        likeness: "reading_pb2.Likeness.ValueType" = reading_pb2.LIKENESS_BOTH,
        node_threshold: float = 0.8,
    ) -> reading_pb2.SummarizeGraphResponse:
        """
        The graph in a few groups, with what flows between them.

        Args:
            name: The graph.
            max_supernodes: Most groups of features, 1 to 12.
            likeness: What makes features alike: what they write, where they stand in the graph, or both.
            node_threshold: Share of the features' influence that is grouped; the rest is one group.
        """
        request = reading_pb2.SummarizeGraphRequest(
            name=full_name("graphs", name),
            max_supernodes=max_supernodes,
            likeness=likeness,
            node_threshold=node_threshold,
        )
        return await unary(self._stub.SummarizeGraph, request, timeout_s=READ_S)

    async def compare(
        self, name: str, other: str, *, max_nodes: int = 200, max_edges: int = 1000
    ) -> reading_pb2.CompareGraphsResponse:
        """Two graphs of one model and transcoder side by side; what differs most comes first."""
        request = reading_pb2.CompareGraphsRequest(
            name=full_name("graphs", name),
            other=full_name("graphs", other),
            max_nodes=max_nodes,
            max_edges=max_edges,
        )
        return await unary(self._stub.CompareGraphs, request, timeout_s=READ_S)

    async def split_edge(
        self, name: str, *, source: str, target: str, max_parts: int = 100
    ) -> attention_pb2.SplitEdgeResponse:
        """What of an edge goes through which attention head, and which position that reads; all parts are the edge."""
        request = attention_pb2.SplitEdgeRequest(
            name=full_name("graphs", name), source_node_id=source, target_node_id=target, max_parts=max_parts
        )
        return await unary(self._stub.SplitEdge, request, timeout_s=READ_S)

    async def explain_attention(
        self, name: str, *, layer: int, head: int, query_position: int, key_position: int, max_pairs: int = 50
    ) -> attention_pb2.ExplainAttentionResponse:
        """Why a head attends from one position to another: its score as a sum over pairs of nodes."""
        request = attention_pb2.ExplainAttentionRequest(
            name=full_name("graphs", name),
            layer=layer,
            head=head,
            query_position=query_position,
            key_position=key_position,
            max_pairs=max_pairs,
        )
        return await unary(self._stub.ExplainAttention, request, timeout_s=READ_S)

    async def steer(
        self,
        name: str,
        *,
        changes: Sequence[steering_pb2.FeatureChange],
        held: tuple[int, int] | None = None,
        freeze_attention: bool = False,
        shown_node_ids: Sequence[str] = (),
    ) -> steering_pb2.SteerResponse:
        """
        Change features and supernodes in the model; predicted beside measured for every node shown.

        Args:
            name: The graph.
            changes: A factor, a value or a patch from another prompt, each for one or more feature nodes.
            held: First and last layer whose MLPs do not answer; None leaves all free.
            freeze_attention: Holds attention patterns and norm scales too.
            shown_node_ids: Feature nodes; none means those that the graph's pruning keeps.
        """
        request = steering_pb2.SteerRequest(
            name=full_name("graphs", name),
            changes=changes,
            held=None if held is None else steering_pb2.HeldLayers(first=held[0], last=held[1]),
            freeze_attention=freeze_attention,
            shown_node_ids=shown_node_ids,
        )
        return await unary(self._stub.Steer, request, timeout_s=INTERVENE_S)

    async def measure_faithfulness(self, name: str, *, num_nodes: int = 64) -> operations_pb2.Operation:
        """
        Start ablating the most influential features one by one; `operations.wait` gives the Faithfulness.

        Args:
            name: The graph, which keeps the result.
            num_nodes: Features, 3 to 500; each takes three passes of the model.
        """
        request = steering_pb2.MeasureFaithfulnessRequest(name=full_name("graphs", name), num_nodes=num_nodes)
        return await unary(self._stub.MeasureFaithfulness, request)

    async def create_batch(
        self, batch_id: str, *, items: Sequence[batches_pb2.GraphBatchItem], validate_only: bool = False
    ) -> operations_pb2.Operation:
        """
        Start many graphs; `operations.wait` gives the GraphBatch with what became of each.

        Args:
            batch_id: Lower-case letters, digits and `-`, at most 40; the same items again are the same batch.
            items: 1 to 1,000 specs, each with an id of its graph or none.
            validate_only: Check what can be checked without the model, and change nothing.
        """
        request = batches_pb2.CreateGraphBatchRequest(batch_id=batch_id, items=items, validate_only=validate_only)
        return await unary(self._stub.CreateGraphBatch, request)

    async def get_batch(self, name: str) -> batches_pb2.GraphBatch:
        """Describe a batch; its results are there once it is done."""
        return await unary(
            self._stub.GetGraphBatch, batches_pb2.GetGraphBatchRequest(name=full_name("graphBatches", name))
        )

    async def delete(self, name: str) -> None:
        """Delete a graph."""
        await unary(self._stub.DeleteGraph, service_pb2.DeleteGraphRequest(name=full_name("graphs", name)))
