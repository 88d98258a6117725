# Generated from `weft_client/aio` by `scripts/client_sync.py`; edit that.
"""Features of a transcoder."""

from weft.features.v1 import service_pb2, service_pb2_grpc
from weft_client.names import full_name
from weft_client.sync.calls import unary
from weft_client.sync.connection import Connection


class Features:
    """What a feature reads and writes; served by the attribution service."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def _stub(self) -> "service_pb2_grpc.FeatureServiceStub":
        return service_pb2_grpc.FeatureServiceStub(self._connection.channel("attribution"))

    def get(self, transcoder: str, *, layer: int, index: int, num_logits: int = 10) -> service_pb2.Feature:
        """Describe one feature."""
        name = f"{full_name('transcoders', transcoder)}/features/{layer}-{index}"
        return unary(self._stub.GetFeature, service_pb2.GetFeatureRequest(name=name, num_logits=num_logits))
