"""
From a bucket to activations: ranged reads of checked blocks.

Shapes: L layers, T tokens of a row group, D d_model.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft_common.errors import DataLossError, InvalidArgumentError, NotFoundError
from weft_store.port import RangedReads
from weft_store.shard.basis import Bases, basis_key
from weft_store.shard.bf16 import decode_bf16_bits, round_to_bf16, widen_bf16
from weft_store.shard.coding import CodedBlock, round_codes
from weft_store.shard.layout import (
    PRELUDE_BYTES,
    STREAMS,
    ShardHeader,
    ShardIndex,
    Stream,
    block_digest,
    read_index,
    read_prelude,
)
from weft_store.shard.transformed import undo
from weft_store.shard.version_1 import decode_uniform_codes

# Enough for the index of a small model's shard in one request.
_FIRST_BYTES = 256 << 10
_VERIFY_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class CodedStream:
    """
    One stream of a row group before its codes are made numbers of.

    Attributes:
        codes_LTD: Signed integers of the width that the widest layer needs, or uint16 with the bits of a bfloat16.
        step_L: A value is its code times this, float32; None for bfloat16.
        mean_LD: Plus this, float32; None for bfloat16.
        basis_LCD: For `klt` codes are of components, and this, float16, makes channels of them before the mean is
            added; None otherwise. The same array for all row groups whose shards share a basis.
    """

    codes_LTD: NDArray[Any]
    step_L: NDArray[np.float32] | None
    mean_LD: NDArray[np.float32] | None
    basis_LCD: NDArray[np.float16] | None = None

    def values(self) -> NDArray[np.float32]:
        """Give the numbers, [L, T, D]."""
        if self.step_L is None or self.mean_LD is None:
            return widen_bf16(self.codes_LTD)
        values: NDArray[np.float32]
        if self.basis_LCD is not None:
            values = np.empty(self.codes_LTD.shape, np.float32)
            for layer, codes_TD in enumerate(self.codes_LTD):
                vectors_DD = self.basis_LCD[layer].astype(np.float32)
                values[layer] = undo(codes_TD, self.step_L[layer], self.mean_LD[layer], vectors_DD)
            return values
        values = self.codes_LTD.astype(np.float32)
        values *= self.step_L[:, None, None]
        values += self.mean_LD[:, None]
        return values

    def bf16_bits(self, *, undo_basis: bool = True) -> NDArray[np.uint16]:
        """
        Give the bits of the nearest bfloat16 of each number, ties to even, uint16 [L, T, D].

        Args:
            undo_basis: Where there is a basis: make channels of components. Otherwise they are components, without the
                mean, for one who computes in that basis.
        """
        if self.step_L is None or self.mean_LD is None:
            return self.codes_LTD
        if self.basis_LCD is not None and undo_basis:
            return round_to_bf16(self.values())
        bits_LTD = np.empty(self.codes_LTD.shape, np.uint16)
        for layer, codes_TD in enumerate(self.codes_LTD):
            mean_D = self.mean_LD[layer] if self.basis_LCD is None else np.zeros_like(self.mean_LD[layer])
            round_codes(codes_TD, self.step_L[layer], mean_D, bits_LTD[layer])
        return bits_LTD


class ShardReader:
    """
    Reads one shard; every block is checked against its digest before it is decoded.

    Args:
        store: Where it lies.
        key: Its name there.
        bases: Shared with readers of other shards, so that a basis is in memory once; by default this reader's own.

    Attributes:
        header: What the shard holds.

    Raises:
        NotFoundError: There is no such object.
        DataLossError: It is damaged; also from every read of a damaged block, and of one whose basis is not there.
    """

    def __init__(self, store: RangedReads, key: str, bases: Bases | None = None) -> None:
        self._store = store
        self._key = key
        self._bases = bases or Bases(store)
        self._index: ShardIndex = _load_index(store, key)
        self.header: ShardHeader = self._index.header

    def read(self, stream: Stream, layer: int, row_group: int) -> NDArray[np.float32]:
        """Read one block, [T, D]."""
        if stream not in STREAMS:
            raise InvalidArgumentError(f"unknown stream {stream!r}: expected {' or '.join(STREAMS)}.", field="stream")
        if not 0 <= layer < self.header.num_layers:
            raise InvalidArgumentError(
                f"layer {layer} is out of range: shard {self._key!r} has {self.header.num_layers}.", field="layer"
            )
        self._check_row_group(row_group)
        at = STREAMS.index(stream)
        row = self._index.table_GSL[row_group, at, layer]
        payload = memoryview(self._fetch(int(row["offset"]), int(row["length"])))
        self._check_block(payload, row_group, at, layer)
        values_LTD = self._coded([payload], row_group, at, slice(layer, layer + 1)).values()
        return values_LTD.reshape(-1, self.header.d_model)

    def read_row_group(self, row_group: int) -> dict[Stream, NDArray[np.float32]]:
        """Read all blocks of a row group with one request: `input` and `output`, [L, T, D] each."""
        return {stream: coded.values() for stream, coded in self.read_codes(row_group).items()}

    def read_codes(self, row_group: int) -> dict[Stream, CodedStream]:
        """Read all blocks of a row group with one request and leave their codes as they are."""
        self._check_row_group(row_group)
        rows = self._index.table_GSL[row_group]
        start = int(rows["offset"].flat[0])
        payload = memoryview(self._fetch(start, int(rows["length"].sum())))
        blocks = {}
        for place in np.ndindex(rows.shape):
            begin = int(rows[place]["offset"]) - start
            blocks[place] = payload[begin : begin + int(rows[place]["length"])]
            self._check_block(blocks[place], row_group, *place)
        layers = range(self.header.num_layers)
        return {
            stream: self._coded([blocks[at, layer] for layer in layers], row_group, at)
            for at, stream in enumerate(STREAMS)
        }

    def _check_row_group(self, row_group: int) -> None:
        if not 0 <= row_group < self.header.num_row_groups:
            raise InvalidArgumentError(
                f"row group {row_group} is out of range: shard {self._key!r} has {self.header.num_row_groups}.",
                field="row_group",
            )

    def _fetch(self, offset: int, length: int) -> bytes:
        payload = self._store.get(self._key, offset=offset, length=length)
        if len(payload) != length:
            raise DataLossError(
                f"shard {self._key!r} ends before byte {offset + length}: restore it from a backup or harvest it again."
            )
        return payload

    def _check_block(self, payload: memoryview, row_group: int, at: int, layer: int) -> None:
        if block_digest(payload) != self._index.table_GSL[row_group, at, layer]["digest"].tobytes():
            raise DataLossError(
                f"shard {self._key!r} is damaged: the block of stream {STREAMS[at]!r}, layer {layer}, row group "
                f"{row_group} does not have its digest. Restore it from a backup or harvest it again."
            )

    def _coded(self, payloads: list[memoryview], row_group: int, at: int, layers: slice = slice(None)) -> CodedStream:
        """Decode blocks of one stream, whose layers `layers` selects."""
        header, parameters = self.header, self._index.parameters
        numbers = range(header.num_layers)[layers]
        rows, width = header.rows(row_group), header.d_model
        if parameters is not None and self._index.version > 1:
            blocks = []
            for layer, payload in zip(numbers, payloads, strict=True):
                with _naming(row_group, at, layer):
                    blocks.append(CodedBlock(payload, rows, width, header.group_channels, self._key))
            widest = max((block.dtype for block in blocks), key=lambda kind: kind.itemsize)
            codes_LTD = np.empty((len(blocks), rows, width), widest)
            for layer, block, codes_TD in zip(numbers, blocks, codes_LTD, strict=True):
                with _naming(row_group, at, layer):
                    block.decode(parameters.orders_SLD[at, layer].astype(np.uint64), codes_TD)
        else:
            arrays = []
            for layer, payload in zip(numbers, payloads, strict=True):
                with _naming(row_group, at, layer):
                    arrays.append(self._planes(payload, rows, at, layer))
            widest = max((codes.dtype for codes in arrays), key=lambda kind: kind.itemsize)
            codes_LTD = np.empty((len(arrays), rows, width), widest)
            for codes_TD, codes in zip(codes_LTD, arrays, strict=True):
                codes_TD[:] = codes
        if parameters is None:
            return CodedStream(codes_LTD, None, None)
        basis_LCD = self._basis(at, layers) if self.header.codec == "klt" else None
        return CodedStream(codes_LTD, parameters.steps_SL[at, layers], parameters.means_SLD[at, layers], basis_LCD)

    def _basis(self, at: int, layers: slice) -> NDArray[np.float16]:
        key = basis_key(self._key, self.header.basis)
        try:
            return self._bases.get(key, self.header.basis, (self.header.num_layers, self.header.d_model), at, layers)
        except NotFoundError as error:
            raise DataLossError(
                f"shard {self._key!r} cannot be read: its basis {key!r} is not there. Restore it from a backup or "
                "harvest again."
            ) from error

    def _planes(self, payload: memoryview, rows: int, at: int, layer: int) -> NDArray[Any]:
        parameters = self._index.parameters
        if parameters is None:
            return decode_bf16_bits(payload, rows, self.header.d_model, self._key)
        order_D = parameters.orders_SLD[at, layer]
        return decode_uniform_codes(payload, rows, order_D, self.header.group_channels, self._key)


@contextmanager
def _naming(row_group: int, at: int, layer: int) -> Iterator[None]:
    """Within it an error says which block it was."""
    try:
        yield
    except DataLossError as error:
        where = f"stream {STREAMS[at]!r}, layer {layer}, row group {row_group}"
        raise DataLossError(f"{error.message} It is the block of {where}.") from error


def verify(store: RangedReads, key: str, sha256: str) -> ShardHeader:
    """
    Read a whole shard, compare its hash with the one of the manifest, and give its header.

    Raises:
        NotFoundError: There is no such object.
        DataLossError: Its bytes are not those that were committed.
    """
    digest = hashlib.sha256()
    offset = 0
    while part := store.get(key, offset=offset, length=_VERIFY_BYTES):
        digest.update(part)
        offset += len(part)
        if len(part) < _VERIFY_BYTES:
            break
    if digest.hexdigest() != sha256:
        raise DataLossError(
            f"shard {key!r} has SHA-256 {digest.hexdigest()}, its manifest says {sha256}: restore it from a backup or "
            "harvest it again."
        )
    index = _load_index(store, key)
    if index.object_bytes != offset:
        raise DataLossError(
            f"shard {key!r} has {offset} bytes, its header says {index.object_bytes}: harvest it again."
        )
    return index.header


def _load_index(store: RangedReads, key: str) -> ShardIndex:
    data = store.get(key, length=_FIRST_BYTES)
    _, index_bytes, _ = read_prelude(data, key)
    if PRELUDE_BYTES + index_bytes > len(data) == _FIRST_BYTES:
        data += store.get(key, offset=_FIRST_BYTES, length=PRELUDE_BYTES + index_bytes - _FIRST_BYTES)
    return read_index(data, key)
