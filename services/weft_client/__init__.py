"""Python client of weft: `Client` for plain code, `AsyncClient` for asyncio; the `weft` command is in `cli`."""

from weft_client.aio.client import AsyncClient
from weft_client.analysis import Analysis
from weft_client.capture import Capture
from weft_client.endpoints import Endpoint, Endpoints
from weft_client.sync.client import Client

__all__ = ["Analysis", "AsyncClient", "Capture", "Client", "Endpoint", "Endpoints"]
