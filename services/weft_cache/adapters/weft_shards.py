"""Shards as weft_store writes them."""

import numpy as np
import numpy.typing as npt

from weft_common.errors import DataLossError, NotFoundError
from weft_store import ObjectStore
from weft_store.shard import ShardHeader, ShardReader, Stream, verify


class WeftShards:
    """Looks into shards in weft's own format, never holding more than a piece of one."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def verify(self, key: str, sha256: str, size_bytes: int) -> ShardHeader:
        try:
            found_bytes = self._store.info(key).size_bytes
            if found_bytes != size_bytes:
                raise DataLossError(f"{key} has {found_bytes} bytes, expected {size_bytes}; write it again")
            return verify(self._store, key, sha256)
        except NotFoundError as error:
            raise DataLossError(f"{key} is not in the bucket; write it again") from error

    def read(self, key: str, stream: Stream, layer: int, row_group: int) -> npt.NDArray[np.float32]:
        try:
            return ShardReader(self._store, key).read(stream, layer, row_group)
        except NotFoundError as error:
            raise DataLossError(f"{key} is not in the bucket; harvest the dataset again") from error
