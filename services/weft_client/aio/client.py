"""The client: one attribute a noun."""

from pathlib import Path
from types import TracebackType
from typing import Self

from weft_client.aio.analyses import AsyncAnalyses
from weft_client.aio.connection import AsyncConnection
from weft_client.aio.corpora import AsyncCorpora
from weft_client.aio.datasets import AsyncDatasets
from weft_client.aio.features import AsyncFeatures
from weft_client.aio.graphs import AsyncGraphs
from weft_client.aio.harvests import AsyncHarvests
from weft_client.aio.jobs import AsyncJobs
from weft_client.aio.labels import AsyncLabels
from weft_client.aio.models import AsyncModels
from weft_client.aio.operations import AsyncOperations
from weft_client.aio.runs import AsyncRuns
from weft_client.aio.transcoders import AsyncTranscoders
from weft_client.connecting import choose_endpoints
from weft_client.endpoints import Endpoint, Endpoints


class AsyncClient:
    """
    Talks to the services of one weft.

    Args:
        endpoints: Where they are; `connect` and `to` find or take them more shortly.
    """

    def __init__(self, endpoints: Endpoints) -> None:
        self.endpoints = endpoints
        self._connection = AsyncConnection(endpoints)
        self.models = AsyncModels(self._connection)
        self.analyses = AsyncAnalyses(self._connection)
        self.corpora = AsyncCorpora(self._connection)
        self.harvests = AsyncHarvests(self._connection)
        self.datasets = AsyncDatasets(self._connection)
        self.runs = AsyncRuns(self._connection)
        self.transcoders = AsyncTranscoders(self._connection)
        self.graphs = AsyncGraphs(self._connection)
        self.features = AsyncFeatures(self._connection)
        self.labels = AsyncLabels(self._connection)
        self.jobs = AsyncJobs(self._connection)
        self.operations = AsyncOperations(self._connection)

    @classmethod
    def connect(cls, path: Path | str | None = None, *, context: str | None = None) -> Self:
        """
        Use the services of an endpoints file or of a context; where neither is named, as the `weft` command does.

        Nothing is sent before the first call.

        Args:
            path: An `endpoints.json`.
            context: Name of a context, `weft contexts list`.
        """
        return cls(choose_endpoints(None if path is None else Path(path), context))

    @classmethod
    def to(cls, **services: Endpoint) -> Self:
        """Use services by name: `to(cache=Endpoint("cache.weft:443", token, tls_ca=Path("ca.pem")))`."""
        return cls(Endpoints(services))

    async def close(self) -> None:
        """Close all channels."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
