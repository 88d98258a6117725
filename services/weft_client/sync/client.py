# Generated from `weft_client/aio` by `scripts/client_sync.py`; edit that.
"""The client: one attribute a noun."""

from pathlib import Path
from types import TracebackType
from typing import Self

from weft_client.endpoints import Endpoint, Endpoints, find_endpoints, read_endpoints
from weft_client.sync.connection import Connection
from weft_client.sync.corpora import Corpora
from weft_client.sync.datasets import Datasets
from weft_client.sync.features import Features
from weft_client.sync.graphs import Graphs
from weft_client.sync.harvests import Harvests
from weft_client.sync.models import Models
from weft_client.sync.operations import Operations
from weft_client.sync.runs import Runs
from weft_client.sync.transcoders import Transcoders


class Client:
    """
    Talks to the services of one weft.

    Args:
        endpoints: Where they are; `connect` and `to` find or take them more shortly.
    """

    def __init__(self, endpoints: Endpoints) -> None:
        self.endpoints = endpoints
        self._connection = Connection(endpoints)
        self.models = Models(self._connection)
        self.corpora = Corpora(self._connection)
        self.harvests = Harvests(self._connection)
        self.datasets = Datasets(self._connection)
        self.runs = Runs(self._connection)
        self.transcoders = Transcoders(self._connection)
        self.graphs = Graphs(self._connection)
        self.features = Features(self._connection)
        self.operations = Operations(self._connection)

    @classmethod
    def connect(cls, path: Path | str | None = None) -> Self:
        """
        Use the services of an embedded run, `weft up`. Nothing is sent before the first call.

        Args:
            path: Its `endpoints.json`; None looks for `.weft/endpoints.json` from the working folder upwards.
        """
        return cls(read_endpoints(find_endpoints(Path.cwd()) if path is None else Path(path)))

    @classmethod
    def to(cls, **services: Endpoint) -> Self:
        """Use services by name: `to(cache=Endpoint("cache.weft:443", token, tls_ca=Path("ca.pem")))`."""
        return cls(Endpoints(services))

    def close(self) -> None:
        """Close all channels."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
