"""The cache service as the core's catalog of datasets."""

from collections.abc import Awaitable

import grpc
import grpc.aio

from weft.cache.v1 import messages_pb2, service_pb2, service_pb2_grpc
from weft_common.client import error_from_rpc
from weft_common.dataset_holds import hold_dataset
from weft_common.logging import get_logger
from weft_trainer.core.ports import DatasetFacts

__all__ = ["GrpcCatalog"]

_log = get_logger(__name__)

# Of a dataset that is being harvested the cache reads what came since its newest snapshot: records where it is
# described, statistics too where a snapshot is taken.
_TIMEOUT_S = 120.0


class GrpcCatalog:
    """
    Asks the cache service.

    Args:
        channel: To it.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = service_pb2_grpc.CacheServiceStub(channel)

    async def describe(self, name: str, snapshot: int = 0) -> DatasetFacts:
        request = service_pb2.GetDatasetRequest(name=name, snapshot=snapshot)
        return await _facts(self._stub.GetDataset(request, timeout=_TIMEOUT_S))

    async def snapshot(self, name: str) -> DatasetFacts:
        request = service_pb2.SnapshotDatasetRequest(name=name)
        return await _facts(self._stub.SnapshotDataset(request, timeout=_TIMEOUT_S))

    async def hold(self, name: str, holder: str) -> None:
        if not await hold_dataset(self._stub, name, holder, timeout_s=_TIMEOUT_S):
            _log.warning("datasets_cannot_be_held", dataset=name, holder=holder)


async def _facts(call: Awaitable[messages_pb2.Dataset]) -> DatasetFacts:
    try:
        dataset = await call
    except grpc.RpcError as error:
        raise error_from_rpc(error) from error
    return DatasetFacts(
        name=dataset.name,
        sealed=dataset.state == messages_pb2.DATASET_STATE_SEALED,
        num_layers=dataset.spec.num_layers,
        d_model=dataset.spec.d_model,
        num_train_tokens=dataset.num_train_tokens,
        num_held_out_tokens=dataset.num_held_out_tokens,
        snapshot=dataset.snapshot,
        create_time=dataset.create_time.ToJsonString() if dataset.HasField("create_time") else "",
    )
