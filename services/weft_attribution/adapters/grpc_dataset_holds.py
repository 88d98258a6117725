"""The cache service as those who hold datasets need it."""

import grpc.aio

from weft.cache.v1 import service_pb2_grpc
from weft_common.dataset_holds import hold_dataset
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
        if not await hold_dataset(self._stub, f"datasets/{dataset}", holder, timeout_s=_TIMEOUT_S):
            _LOG.warning("datasets_cannot_be_held", dataset=dataset, holder=holder)
