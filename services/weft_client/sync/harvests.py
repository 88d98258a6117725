# Generated from `weft_client/aio` by `scripts/client_sync.py`; edit that.
"""Harvests: a corpus read through a model into a dataset."""

import uuid
from collections.abc import Iterator

from google.longrunning import operations_pb2

from weft.activations.v1 import messages_pb2, service_pb2, service_pb2_grpc
from weft_client.names import full_name
from weft_client.sync.calls import pages, unary
from weft_client.sync.connection import Connection


class Harvests:
    """Harvests of the activations service."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def _stub(self) -> "service_pb2_grpc.ActivationServiceStub":
        return service_pb2_grpc.ActivationServiceStub(self._connection.channel("activations"))

    def create(
        self, harvest_id: str, *, spec: messages_pb2.HarvestSpec, validate_only: bool = False, request_id: str = ""
    ) -> operations_pb2.Operation:
        """
        Start a harvest; wait for it with `operations.wait`.

        Args:
            harvest_id: Lower-case letters, digits and `-`.
            spec: What to read and where to write; `weft_client.specs.harvest_spec` fills in what is left out.
            validate_only: Check everything and change nothing.
            request_id: A UUID of your own, to repeat this very request; one is made where there is none.
        """
        request = service_pb2.CreateHarvestRequest(
            harvest_id=harvest_id, spec=spec, validate_only=validate_only, request_id=request_id or str(uuid.uuid4())
        )
        return unary(self._stub.CreateHarvest, request)

    def get(self, name: str) -> messages_pb2.Harvest:
        """Describe one harvest."""
        return unary(self._stub.GetHarvest, service_pb2.GetHarvestRequest(name=full_name("harvests", name)))

    def pause(self, name: str) -> messages_pb2.Harvest:
        """Have no replica take more of a harvest."""
        return unary(self._stub.PauseHarvest, service_pb2.PauseHarvestRequest(name=full_name("harvests", name)))

    def resume(self, name: str) -> messages_pb2.Harvest:
        """Go on with a harvest that was paused, failed or was cancelled."""
        return unary(self._stub.ResumeHarvest, service_pb2.ResumeHarvestRequest(name=full_name("harvests", name)))

    def cancel(self, name: str) -> messages_pb2.Harvest:
        """Stop a harvest; what is committed stays."""
        return unary(self._stub.CancelHarvest, service_pb2.CancelHarvestRequest(name=full_name("harvests", name)))

    def list(self) -> Iterator[messages_pb2.Harvest]:
        """All harvests, newest first."""
        return pages(self._stub.ListHarvests, service_pb2.ListHarvestsRequest(), lambda page: page.harvests)
