"""Row groups of a dataset: planned by the cache service, read from the bucket."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from weft.cache.v1 import messages_pb2, service_pb2, service_pb2_grpc
from weft_clt.config import Scales
from weft_clt.data import RowGroup
from weft_clt.normalization import Moments, Normalization
from weft_common.client import error_from_rpc
from weft_common.errors import FailedPreconditionError
from weft_store import ObjectStore
from weft_store.shard import ShardReader

__all__ = ["CacheRowGroups", "get_dataset", "normalization_of"]

_PAGE_SLICES = 512
_OPEN_SHARDS = 4
_TIMEOUT_S = 60.0


def get_dataset(stub: service_pb2_grpc.CacheServiceStub, name: str) -> messages_pb2.Dataset:
    """Describe a sealed dataset. NotFoundError; FailedPreconditionError where it is open or empty."""
    try:
        dataset: messages_pb2.Dataset = stub.GetDataset(
            service_pb2.GetDatasetRequest(name=name), timeout=_TIMEOUT_S, wait_for_ready=True
        )
    except grpc.RpcError as error:
        raise error_from_rpc(error) from error
    if dataset.state != messages_pb2.DATASET_STATE_SEALED:
        raise FailedPreconditionError(f"{name} is not sealed; wait for its harvest to end, or seal it.")
    if not dataset.num_train_tokens:
        raise FailedPreconditionError(f"{name} has no tokens to train on; harvest a corpus that has some.")
    return dataset


def normalization_of(dataset: messages_pb2.Dataset, scales: Scales) -> Normalization:
    """Derive the units of training from a dataset's statistics."""
    layers = sorted(dataset.statistics, key=lambda entry: entry.layer)
    if [entry.layer for entry in layers] != list(range(dataset.spec.num_layers)):
        raise FailedPreconditionError(f"{dataset.name} lacks statistics of some layers; seal it again.")
    moments = [
        [Moments(stream.mean_norm, np.array(stream.mean)) for stream in streams]
        for streams in ([entry.input for entry in layers], [entry.output for entry in layers])
    ]
    return Normalization.from_moments(moments[0], moments[1], scales)


class CacheRowGroups:
    """
    One rank's share of a split; a `RowGroupSource`.

    Args:
        seed: Of the shuffle over the whole split.
    """

    def __init__(
        self,
        stub: service_pb2_grpc.CacheServiceStub,
        store: ObjectStore,
        dataset: str,
        split: messages_pb2.Split.ValueType,
        *,
        rank: int,
        world_size: int,
        seed: int,
    ) -> None:
        self._stub, self._store, self._dataset, self._split = stub, store, dataset, split
        self._rank, self._world_size, self._seed = rank, world_size, seed
        self._pages: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._readers: OrderedDict[str, ShardReader] = OrderedDict()

    def num_tokens(self) -> int:
        """Return the tokens of the share."""
        return int(self._page(0, 0).num_tokens)

    def at(self, epoch: int, position: int) -> RowGroup | None:
        page, index = divmod(position, _PAGE_SLICES)
        slices = self._page(epoch, page * _PAGE_SLICES).slices
        if index >= len(slices):
            return None
        found = slices[index]
        return RowGroup(epoch, position, found.num_tokens, found.seed, (found.key, found.row_group))

    def read(self, row_group: RowGroup) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        key, index = row_group.where
        reader = self._readers.pop(key, None) or ShardReader(self._store, key)
        self._readers[key] = reader
        if len(self._readers) > _OPEN_SHARDS:
            self._readers.popitem(last=False)
        streams = reader.read_row_group(index)
        return streams["input"], streams["output"]

    def _page(self, epoch: int, start: int) -> Any:
        if (epoch, start) not in self._pages:
            request = service_pb2.PlanReadsRequest(
                dataset=self._dataset,
                split=self._split,
                rank=self._rank,
                world_size=self._world_size,
                epoch=epoch,
                seed=self._seed,
                start_position=start,
                max_slices=_PAGE_SLICES,
            )
            try:
                answer = self._stub.PlanReads(request, timeout=_TIMEOUT_S, wait_for_ready=True)
            except grpc.RpcError as error:
                raise error_from_rpc(error) from error
            self._pages[epoch, start] = answer
            if len(self._pages) > _OPEN_SHARDS:
                self._pages.popitem(last=False)
        return self._pages[epoch, start]
