# Generated from `weft_client/aio` by `scripts/client_sync.py`; edit that.
"""The client: one attribute a noun."""

from pathlib import Path
from types import TracebackType
from typing import Self

from weft_client.connecting import choose_endpoints
from weft_client.endpoints import Endpoint, Endpoints
from weft_client.sync.analyses import Analyses
from weft_client.sync.connection import Connection
from weft_client.sync.corpora import Corpora
from weft_client.sync.datasets import Datasets
from weft_client.sync.features import Features
from weft_client.sync.graphs import Graphs
from weft_client.sync.harvests import Harvests
from weft_client.sync.jobs import Jobs
from weft_client.sync.labels import Labels
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
        self.analyses = Analyses(self._connection)
        self.corpora = Corpora(self._connection)
        self.harvests = Harvests(self._connection)
        self.datasets = Datasets(self._connection)
        self.runs = Runs(self._connection)
        self.transcoders = Transcoders(self._connection)
        self.graphs = Graphs(self._connection)
        self.features = Features(self._connection)
        self.labels = Labels(self._connection)
        self.jobs = Jobs(self._connection)
        self.operations = Operations(self._connection)

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

    def close(self) -> None:
        """Close all channels."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
