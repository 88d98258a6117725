"""How services ask the cache to keep a dataset from being deleted."""

import grpc

from weft.cache.v1 import retention_pb2, service_pb2_grpc
from weft_common.client import error_from_rpc
from weft_common.errors import UnimplementedError

__all__ = ["hold_dataset"]


async def hold_dataset(
    stub: "service_pb2_grpc.CacheServiceAsyncStub", name: str, holder: str, *, timeout_s: float
) -> bool:
    """
    Hold a dataset for as long as its holder has not ended; the same again is no error.

    Args:
        stub: Of the cache service.
        name: `datasets/{dataset}`.
        holder: Who reads it, `runs/{run}` or `operations/{operation}`.
        timeout_s: Deadline of the call.

    Returns:
        Whether it is held; a cache of a version before this one, in the middle of an upgrade, cannot hold.

    Raises:
        WeftError: What else the cache answered.
    """
    request = retention_pb2.HoldDatasetRequest(name=name, holder=holder)
    try:
        await stub.HoldDataset(request, timeout=timeout_s)
    except grpc.RpcError as error:
        found = error_from_rpc(error)
        if not isinstance(found, UnimplementedError):
            raise found from error
        return False
    return True
