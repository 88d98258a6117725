"""The attribution service over a small model in this process, its client, and the `weft` command."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attribution_rig import NoSequences, ReferenceModel, ReferenceRunner, make_reference_folder, make_transcoder
from structlog.testing import capture_logs
from typer.testing import CliRunner

from weft.attribution.v1 import messages_pb2
from weft_attribution.wiring import registrations
from weft_client import AsyncClient, Endpoint
from weft_client.cli import app
from weft_common.server import serving
from weft_common.settings import ServiceSettings
from weft_store.opening import open_store
from weft_store.port import ObjectStore

PROMPT = "capital"


@dataclass
class AttributionHouse:
    """
    A served model `tiny` with the transcoder `t`.

    Args:
        client: A client of the attribution service.
        runner: The base model; tests may have it fail.
        store: The bucket.
        folder: Where the endpoints file lies.
    """

    client: AsyncClient
    runner: ReferenceRunner
    store: ObjectStore
    folder: Path

    async def make(self, graph_id: str = "g1", prompt: str = PROMPT, **spec: Any) -> messages_pb2.Graph:
        """Make a graph and wait for it."""
        asked = {"model": "models/tiny", "transcoder": "transcoders/t", "prompt": prompt, **spec}
        operation = await self.client.graphs.create(graph_id, spec=messages_pb2.GraphSpec(**asked))
        graph = await self.client.operations.wait(operation)
        assert isinstance(graph, messages_pb2.Graph)
        return graph

    async def content(self, graph_id: str = "g1") -> dict[str, Any]:
        """A graph's JSON."""
        found: dict[str, Any] = json.loads((await self.client.graphs.get(graph_id)).json)
        return found

    async def weft(self, *arguments: str) -> Any:
        """Run the command in a thread, as its calls block."""
        endpoints = str(self.folder / "endpoints.json")
        return await asyncio.to_thread(CliRunner().invoke, app, ["--endpoints", endpoints, *arguments])

    async def text(self, *arguments: str) -> str:
        """What the command prints; it must succeed."""
        result = await self.weft(*arguments)
        assert result.exit_code == 0, result.stderr
        return str(result.stdout)

    async def json(self, *arguments: str) -> Any:
        """The same with --json."""
        return json.loads(await self.text(*arguments, "--json"))


@asynccontextmanager
async def attribution_house(
    folder: Path, family: str = "llama", runner: Any = None, sequences: Any = None, **options: Any
) -> AsyncIterator[AttributionHouse]:
    """
    Serve; `options` go to the wiring.

    Another runner has models and transcoders of its own; `sequences` are those behind datasets, if there are any.
    """
    store = open_store(f"file://{folder}/bucket")
    if runner is None:
        model = ReferenceModel(make_reference_folder(folder / "models" / "tiny", family))
        make_transcoder(store, "t", model, jump=True)
        runner = ReferenceRunner(model)
    settings = ServiceSettings(token="integration")
    options = {"max_prompt_tokens": 20, "max_features": 5000, "observe": lambda seconds: None, **options}
    # Logs of services in this process would mix with what the command prints.
    with capture_logs():
        async with (
            registrations(store, runner, folder / "models", sequences or NoSequences(), **options) as served,
            serving("attribution", settings, served) as server,
        ):
            target = f"127.0.0.1:{server.port}"
            services = {"attribution": {"target": target, "token": "integration"}}
            (folder / "endpoints.json").write_text(json.dumps({"services": services}))
            async with AsyncClient.to(attribution=Endpoint(target, "integration")) as client:
                yield AttributionHouse(client, runner, store, folder)
