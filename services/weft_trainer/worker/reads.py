"""Row groups of a dataset: planned by the cache service, read from the bucket."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np

from weft.cache.v1 import messages_pb2, service_pb2, service_pb2_grpc
from weft_clt.config import Scales
from weft_clt.data import CodedRowGroup, CodedStream, RowGroup
from weft_clt.normalization import Moments, Normalization
from weft_common.client import error_from_rpc
from weft_common.errors import FailedPreconditionError
from weft_store.port import RangedReads
from weft_store.shard import Bases, ShardReader
from weft_trainer.worker.patience import patiently

__all__ = ["CacheRowGroups", "PlanOver", "get_dataset", "normalization_of", "only"]

_PAGE_SLICES = 4096
_KEPT_PAGES = 4
# An index of SmolLM2's shards takes 0.3 MB; a shuffle over all shards comes back to each soon.
_OPEN_SHARDS = 64
_TIMEOUT_S = 60.0


def get_dataset(stub: service_pb2_grpc.CacheServiceStub, name: str, snapshot: int = 0) -> messages_pb2.Dataset:
    """Describe a sealed dataset, or a snapshot. NotFoundError; FailedPreconditionError where it is open or empty."""
    request = service_pb2.GetDatasetRequest(name=name, snapshot=snapshot)
    try:
        dataset: messages_pb2.Dataset = stub.GetDataset(request, timeout=_TIMEOUT_S, wait_for_ready=True)
    except grpc.RpcError as error:
        raise error_from_rpc(error) from error
    if dataset.state != messages_pb2.DATASET_STATE_SEALED and not snapshot:
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


@dataclass(frozen=True)
class PlanOver:
    """
    What an epoch's plan is made of.

    Args:
        snapshot: Of the dataset; 0 means all of it, sealed.
        since_snapshot: An earlier one, whose shards are left out; 0 leaves out none.
        create_time: Of the dataset, RFC 3339, so that another of its name is refused; empty where nobody knows.
    """

    snapshot: int = 0
    since_snapshot: int = 0
    create_time: str = ""


def only(snapshot: int) -> Callable[[int], PlanOver]:
    """Have every epoch go over one snapshot; 0 means the sealed dataset."""
    return lambda epoch: PlanOver(snapshot)


class CacheRowGroups:
    """
    One rank's share of a split; a `RowGroupSource`.

    Args:
        store: The bucket, or what keeps its shards nearer.
        seed: Of the shuffle over the whole split.
        over: Says of an epoch what it goes over.
        retry_s: How long a bucket or a cache that refuses is asked again.
    """

    def __init__(
        self,
        stub: service_pb2_grpc.CacheServiceStub,
        store: RangedReads,
        dataset: str,
        split: messages_pb2.Split.ValueType,
        *,
        rank: int,
        world_size: int,
        seed: int,
        over: Callable[[int], PlanOver],
        retry_s: float = 0.0,
    ) -> None:
        self._retry_s, self._closed = retry_s, threading.Event()
        self._stub, self._store, self._dataset, self._split = stub, store, dataset, split
        self._rank, self._world_size, self._seed, self._over = rank, world_size, seed, over
        self._pages: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._bases = Bases(store)
        self._readers: OrderedDict[str, ShardReader] = OrderedDict()
        self._readers_lock = threading.Lock()

    def close(self) -> None:
        """Let reads that wait for the bucket fail now, so that the threads that do them can end."""
        self._closed.set()

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

    def read(self, row_group: RowGroup) -> CodedRowGroup:
        return patiently(lambda: self._read(row_group), self.describe(row_group), self._retry_s, self._closed)

    def _read(self, row_group: RowGroup) -> CodedRowGroup:
        key, index = row_group.where
        with self._readers_lock:
            reader = self._readers.pop(key, None)
        reader = reader or ShardReader(self._store, key, self._bases)
        with self._readers_lock:
            self._readers[key] = reader
            if len(self._readers) > _OPEN_SHARDS:
                self._readers.popitem(last=False)
        streams = reader.read_codes(index)
        inputs, outputs = (
            CodedStream(stream.codes_LTD, stream.step_L, stream.mean_LD, stream.basis_LCD)
            for stream in (streams["input"], streams["output"])
        )
        return CodedRowGroup(inputs, outputs)

    def describe(self, row_group: RowGroup) -> str:
        key, index = row_group.where
        return f"row group {index} of shard {key!r} of {self._dataset}"

    def _page(self, epoch: int, start: int) -> Any:
        if (epoch, start) not in self._pages:
            over = self._over(epoch)
            request = service_pb2.PlanReadsRequest(
                dataset=self._dataset,
                split=self._split,
                rank=self._rank,
                world_size=self._world_size,
                epoch=epoch,
                seed=self._seed,
                start_position=start,
                max_slices=_PAGE_SLICES,
                snapshot=over.snapshot,
                since_snapshot=over.since_snapshot,
            )
            if over.create_time:
                request.dataset_create_time.FromJsonString(over.create_time)
            self._pages[epoch, start] = patiently(lambda: self._ask(request), "a plan of reads", self._retry_s)
            if len(self._pages) > _KEPT_PAGES:
                self._pages.popitem(last=False)
        return self._pages[epoch, start]

    def _ask(self, request: service_pb2.PlanReadsRequest) -> service_pb2.PlanReadsResponse:
        try:
            answer: service_pb2.PlanReadsResponse = self._stub.PlanReads(
                request, timeout=_TIMEOUT_S, wait_for_ready=True
            )
        except grpc.RpcError as error:
            raise error_from_rpc(error) from error
        return answer
