"""Shards as weft_store writes them."""

import hashlib

import numpy as np
import numpy.typing as npt

from weft_cache.core.ports import ShardHeader
from weft_common.errors import DataLossError, NotFoundError
from weft_store import ObjectStore
from weft_store.shard import ShardReader

_PIECE_BYTES = 8 << 20


class WeftShards:
    """Looks into shards in weft's own format, never holding more than a piece of one."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def verify(self, key: str, sha256: str, size_bytes: int) -> None:
        try:
            found_bytes = self._store.info(key).size_bytes
            if found_bytes != size_bytes:
                raise DataLossError(f"{key} has {found_bytes} bytes, expected {size_bytes}; write it again")
            digest = hashlib.sha256()
            for offset in range(0, size_bytes, _PIECE_BYTES):
                digest.update(self._store.get(key, offset=offset, length=_PIECE_BYTES))
        except NotFoundError as error:
            raise DataLossError(f"{key} is not in the bucket; write it again") from error
        if digest.hexdigest() != sha256:
            raise DataLossError(f"{key} has SHA-256 {digest.hexdigest()}, expected {sha256}; write it again")

    def header(self, key: str) -> ShardHeader:
        header = ShardReader(self._store, key).header
        return ShardHeader(
            num_layers=header.num_layers,
            d_model=header.d_model,
            num_tokens=header.num_tokens,
            row_group_tokens=header.row_group_tokens,
            codec=header.codec.kind,
        )

    def read(self, key: str, stream: str, layer: int, row_group: int) -> npt.NDArray[np.float32]:
        try:
            return ShardReader(self._store, key).read(stream, layer, row_group)
        except NotFoundError as error:
            raise DataLossError(f"{key} is not in the bucket; harvest the dataset again") from error
