"""A graph whose service went away is computed by the next one, from the request that lies in the bucket."""

import asyncio
import json
from pathlib import Path
from typing import Any

from attribution_rig import NoSequences, ReferenceModel, ReferenceRunner, make_reference_folder, make_transcoder
from google.longrunning import operations_pb2, operations_pb2_grpc

from weft.attribution.v1 import messages_pb2, service_pb2, service_pb2_grpc
from weft_attribution.wiring import registrations
from weft_common.client import aio_channel
from weft_common.server import serving
from weft_common.settings import ServiceSettings
from weft_store.opening import open_store


class StuckRunner(ReferenceRunner):
    """A model whose captures never end."""

    async def capture(self, *args: Any, **kwargs: Any) -> Any:
        await asyncio.Event().wait()


async def test_next_service_finishes_the_graph(tmp_path: Path) -> None:
    """The operation of a service that stopped in the middle ends well in the next, with half-written edges there."""
    model = ReferenceModel(make_reference_folder(tmp_path / "models" / "tiny", "gpt2"))
    url = f"file://{tmp_path}/bucket"
    make_transcoder(open_store(url), "t", model)
    settings = ServiceSettings(insecure_no_auth=True)
    spec = messages_pb2.GraphSpec(model="models/tiny", transcoder="transcoders/t", prompt="capital")
    name = ""
    for runner in (StuckRunner(model), ReferenceRunner(model)):
        store = open_store(url)
        wired = registrations(
            store,
            runner,
            tmp_path / "models",
            NoSequences(),
            max_prompt_tokens=20,
            max_features=5000,
            observe=lambda stage_seconds: None,
        )
        async with (
            wired as served,
            serving("attribution", settings, served) as server,
            aio_channel(server.target) as channel,
        ):
            graphs = service_pb2_grpc.AttributionServiceStub(channel)
            if not name:
                operation = await graphs.CreateGraph(service_pb2.CreateGraphRequest(graph_id="g", spec=spec))
                name = operation.name
                await asyncio.sleep(0.5)
                store.put("graphs/g/edges.safetensors", b"half of a file")
                graph = await graphs.GetGraph(service_pb2.GetGraphRequest(name="graphs/g"))
                assert graph.state == messages_pb2.GRAPH_STATE_RUNNING
                continue
            operations = operations_pb2_grpc.OperationsStub(channel)
            operation = operations_pb2.Operation()
            while not operation.done:
                operation = await operations.WaitOperation(operations_pb2.WaitOperationRequest(name=name))
            graph = await graphs.GetGraph(service_pb2.GetGraphRequest(name="graphs/g"))
            assert graph.state == messages_pb2.GRAPH_STATE_SUCCEEDED
            prune = service_pb2.PruneGraphRequest(name="graphs/g", node_threshold=0.8, edge_threshold=0.98)
            assert json.loads((await graphs.PruneGraph(prune)).json) == json.loads(graph.json)
