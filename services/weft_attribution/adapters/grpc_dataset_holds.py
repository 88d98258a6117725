"""The cache service as those who hold datasets need it."""

import grpc
import grpc.aio

from weft.cache.v1 import retention_pb2, service_pb2_grpc
from weft_common.client import error_from_rpc
from weft_common.errors import UnimplementedError
from weft_common.logging import get_logger

__all__ = ["GrpcDatasetHolds"]

_LOG = get_logger(__name__)
_TIMEOUT_S = 30.0


class GrpcDatasetHolds:
    """
    Speaks to CacheService.

    Args:
        channel: A channel to it, with its token.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = service_pb2_grpc.CacheServiceStub(channel)

    async def hold(self, dataset: str, holder: str) -> None:
        request = retention_pb2.HoldDatasetRequest(name=f"datasets/{dataset}", holder=holder)
        try:
            await self._stub.HoldDataset(request, timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            found = error_from_rpc(error)
            if not isinstance(found, UnimplementedError):
                raise found from error
            # A cache of a version before this one, in the middle of an upgrade.
            _LOG.warning("datasets_cannot_be_held", dataset=dataset, holder=holder)
