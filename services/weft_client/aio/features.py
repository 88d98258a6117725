"""Features of a transcoder."""

from weft.features.v1 import service_pb2, service_pb2_grpc
from weft_client.aio.calls import unary
from weft_client.aio.connection import AsyncConnection
from weft_client.names import full_name


class AsyncFeatures:
    """What a feature reads and writes; served by the attribution service."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    @property
    def _stub(self) -> "service_pb2_grpc.FeatureServiceAsyncStub":
        return service_pb2_grpc.FeatureServiceStub(self._connection.channel("attribution"))

    async def get(self, transcoder: str, *, layer: int, index: int, num_logits: int = 10) -> service_pb2.Feature:
        """Describe one feature."""
        name = f"{full_name('transcoders', transcoder)}/features/{layer}-{index}"
        return await unary(self._stub.GetFeature, service_pb2.GetFeatureRequest(name=name, num_logits=num_logits))
