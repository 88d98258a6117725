"""A listing of many graphs: what it reads of a bucket, and what it says of graphs in every state."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from attribution_rig import NoSequences, ReferenceModel, ReferenceRunner, make_reference_folder, make_transcoder
from google.longrunning import operations_pb2, operations_pb2_grpc

from weft.attribution.v1 import messages_pb2, service_pb2, service_pb2_grpc
from weft_attribution.wiring import registrations
from weft_common.client import aio_channel
from weft_common.server import serving
from weft_common.settings import ServiceSettings
from weft_store.adapters.memory import MemoryObjectStore
from weft_store.port import ObjectInfo, ObjectStore

NUM_GRAPHS = 1000
SPEC = messages_pb2.GraphSpec(model="models/tiny", transcoder="transcoders/t", prompt="capital")


class WatchedStore(MemoryObjectStore):
    """A bucket in memory that notes which objects are read."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[str] = []

    def get_with_info(self, key: str) -> tuple[bytes, ObjectInfo]:
        self.read.append(key)
        return super().get_with_info(key)


@asynccontextmanager
async def attribution(store: ObjectStore, models_dir: Path) -> AsyncIterator[tuple[Any, Any]]:
    """Serve a bucket; gives the stubs of graphs and of their operations."""
    runner = ReferenceRunner(ReferenceModel(models_dir / "tiny"))
    wired = registrations(
        store,
        runner,
        models_dir,
        NoSequences(),
        max_prompt_tokens=20,
        max_features=5000,
        observe=lambda stage_seconds: None,
    )
    async with (
        wired as served,
        serving("attribution", ServiceSettings(insecure_no_auth=True), served) as server,
        aio_channel(server.target) as channel,
    ):
        yield service_pb2_grpc.AttributionServiceStub(channel), operations_pb2_grpc.OperationsStub(channel)


async def make_graph(graphs: Any, operations: Any, graph_id: str) -> None:
    operation = await graphs.CreateGraph(service_pb2.CreateGraphRequest(graph_id=graph_id, spec=SPEC))
    while not operation.done:
        operation = await operations.WaitOperation(operations_pb2.WaitOperationRequest(name=operation.name))
    assert not operation.HasField("error"), operation.error


@pytest.fixture
async def one_graph(tmp_path: Path) -> WatchedStore:
    """A bucket with a graph, `g`, and an intervention on it."""
    model = ReferenceModel(make_reference_folder(tmp_path / "tiny", "llama"))
    store = WatchedStore()
    make_transcoder(store, "t", model)
    async with attribution(store, tmp_path) as (graphs, operations):
        await make_graph(graphs, operations, "g")
        whole = await graphs.GetGraph(service_pb2.GetGraphRequest(name="graphs/g"))
        nodes = json.loads(whole.json)["nodes"]
        feature = next(node["node_id"] for node in nodes if node["feature_type"] == "cross layer transcoder")
        change = [messages_pb2.FeatureIntervention(node_id=feature, factor=0.0)]
        await graphs.Intervene(service_pb2.InterveneRequest(name="graphs/g", interventions=change))
    return store


async def test_listing_reads_no_graph_document(one_graph: WatchedStore, tmp_path: Path) -> None:
    """A thousand graphs are listed from their requests and summaries, two small objects each, and are all told."""
    record = json.loads(one_graph.get("graphs/g/request.json"))
    document, summary = one_graph.get("graphs/g.json"), one_graph.get("graphs/g/summary.json")
    assert len(summary) < len(document) / 2
    for number in range(NUM_GRAPHS - 1):
        graph_id = f"copy-{number}"
        one_graph.put(f"graphs/{graph_id}/request.json", json.dumps({**record, "graph_id": graph_id}).encode())
        one_graph.put(f"graphs/{graph_id}.json", document)
        one_graph.put(f"graphs/{graph_id}/summary.json", summary)
    async with attribution(one_graph, tmp_path) as (graphs, _):
        one_graph.read.clear()
        listed = await graphs.ListGraphs(service_pb2.ListGraphsRequest(page_size=NUM_GRAPHS))
        read = [key for key in one_graph.read if key.startswith("graphs/")]
    assert len(listed.graphs) == NUM_GRAPHS
    assert {graph.state for graph in listed.graphs} == {messages_pb2.GRAPH_STATE_SUCCEEDED}
    assert all(graph.statistics.num_nodes > 0 and len(graph.interventions) == 1 for graph in listed.graphs)
    assert not [key for key in read if not key.endswith(("/request.json", "/summary.json"))]
    assert len(read) == 2 * NUM_GRAPHS


async def test_summary_is_made_again_from_its_graph(one_graph: WatchedStore, tmp_path: Path) -> None:
    """Where a process died between the graph and its summary, a listing tells the graph and writes the summary."""
    one_graph.delete("graphs/g/summary.json")
    async with attribution(one_graph, tmp_path) as (graphs, _):
        for _ in range(2):
            (graph,) = (await graphs.ListGraphs(service_pb2.ListGraphsRequest())).graphs
            assert graph.state == messages_pb2.GRAPH_STATE_SUCCEEDED
            assert graph.statistics.num_nodes > 0
    assert one_graph.read.count("graphs/g.json") > 0
    assert one_graph.info("graphs/g/summary.json").size_bytes > 0


async def test_summary_of_a_former_graph_is_not_believed(one_graph: WatchedStore, tmp_path: Path) -> None:
    """What a graph of the same id left behind neither ends a new one nor gives it interventions."""
    left = json.loads(one_graph.get("graphs/g/summary.json"))
    async with attribution(one_graph, tmp_path) as (graphs, operations):
        await graphs.DeleteGraph(service_pb2.DeleteGraphRequest(name="graphs/g"))
        one_graph.put("graphs/g/summary.json", json.dumps(left).encode())
        await make_graph(graphs, operations, "g")
        (graph,) = (await graphs.ListGraphs(service_pb2.ListGraphsRequest())).graphs
        whole = await graphs.GetGraph(service_pb2.GetGraphRequest(name="graphs/g"))
    assert graph.state == messages_pb2.GRAPH_STATE_SUCCEEDED
    assert not graph.interventions
    assert not whole.interventions
