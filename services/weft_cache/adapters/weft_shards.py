"""Shards as weft_store writes them."""

import numpy as np
import numpy.typing as npt

from weft_common.errors import DataLossError, NotFoundError
from weft_store import ObjectStore
from weft_store.shard import Bases, ShardHeader, ShardReader, Stream, basis_key, verify


class WeftShards:
    """Looks into shards in weft's own format, never holding more than a piece of one."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._bases = Bases(store)

    def verify(self, key: str, sha256: str, size_bytes: int) -> ShardHeader:
        try:
            found_bytes = self._store.info(key).size_bytes
            if found_bytes != size_bytes:
                raise DataLossError(f"{key} has {found_bytes} bytes, expected {size_bytes}; write it again")
            header = verify(self._store, key, sha256)
            if header.basis:
                # What it holds is checked whenever it is read; all shards of a harvest share it.
                self._store.info(basis_key(key, header.basis))
            return header
        except NotFoundError as error:
            raise DataLossError(f"{key}, or its basis, is not in the bucket; write it again") from error

    def read(self, key: str, stream: Stream, layer: int, row_group: int) -> npt.NDArray[np.float32]:
        try:
            return ShardReader(self._store, key, self._bases).read(stream, layer, row_group)
        except NotFoundError as error:
            raise DataLossError(f"{key} is not in the bucket; harvest the dataset again") from error
