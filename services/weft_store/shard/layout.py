"""
The bytes of a shard around its blocks: prelude, header, parameters and block table.

Specified byte by byte in `docs/reference/shard-format.md`. What a reader believes here it has checked: a digest over
everything before the blocks, and limits on every size before anything is allocated.
Shapes: S streams (input, output), L layers, D d_model, G row groups.
"""

import hashlib
import json
import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from weft_common.errors import DataLossError, InvalidArgumentError

Stream = Literal["input", "output"]
STREAMS: tuple[Stream, Stream] = ("input", "output")

CODECS = ("bf16", "uniform", "klt")
STEPPED = ("uniform", "klt")
"""Those that have a step, which is found for a wanted FVU."""

MAGIC = b"WEFTSHRD"
VERSION = 2
"""What is written; version 1, whose `uniform` has a zstd frame for each byte of a group's codes, is read as well."""
# Magic, version, bytes of the JSON header, bytes of the index (header, parameters, table), bytes of the object.
_PRELUDE = struct.Struct("<8sIIQQ")
PRELUDE_BYTES = _PRELUDE.size + 32
DIGEST_BYTES = 16
TABLE_ROW = np.dtype([("offset", "<u8"), ("length", "<u8"), ("digest", f"V{DIGEST_BYTES}")])

MAX_HEADER_BYTES = 1 << 20
MAX_INDEX_BYTES = 1 << 28
MAX_LAYERS = 1 << 12
MAX_D_MODEL = 1 << 16
MAX_BLOCK_VALUES = 1 << 26
MAX_ROW_GROUP_VALUES = 1 << 30
MIN_TARGET_FVU, MAX_TARGET_FVU = 1e-8, 0.5


@dataclass(frozen=True, slots=True)
class CodecSpec:
    """
    How values are coded.

    Attributes:
        kind: `bf16` (bfloat16, kept exactly), `uniform` (one step a layer and stream) or `klt` (the same after a
            change of basis).
        target_fvu: For `uniform` and `klt`: wanted fraction of variance unexplained; ignored for `bf16`.
    """

    kind: str
    target_fvu: float = 1e-3

    def __post_init__(self) -> None:
        if self.kind not in CODECS:
            raise InvalidArgumentError(
                f"unknown codec {self.kind!r}: expected 'bf16', 'uniform' or 'klt'.", field="codec"
            )
        if self.kind in STEPPED and not MIN_TARGET_FVU <= self.target_fvu <= MAX_TARGET_FVU:
            raise InvalidArgumentError(
                f"target_fvu {self.target_fvu} is out of range: expected {MIN_TARGET_FVU} to {MAX_TARGET_FVU}.",
                field="target_fvu",
            )


@dataclass(frozen=True, slots=True)
class ShardHeader:
    """
    What a shard holds.

    Attributes:
        num_layers: Layers, from 0.
        num_tokens: Tokens of every layer and stream.
        d_model: Width of both streams.
        row_group_tokens: Tokens of a block; the last row group may be shorter.
        codec: `bf16`, `uniform` or `klt`.
        target_fvu: What was asked of `uniform` or `klt`; 0 for `bf16`.
        group_channels: For `uniform` and `klt`: channels or components that share one entropy code; 0 for `bf16`.
        attributes: The writer's own words: model, dataset, what the tokens are.
        basis: For `klt`: hex SHA-256 of the object that holds the vectors; else empty, and not written.
    """

    num_layers: int
    num_tokens: int
    d_model: int
    row_group_tokens: int
    codec: str
    target_fvu: float
    group_channels: int
    attributes: Mapping[str, str]
    basis: str = ""

    @property
    def num_row_groups(self) -> int:
        return -(-self.num_tokens // self.row_group_tokens)

    def rows(self, row_group: int) -> int:
        """Tokens of a row group."""
        return min(self.row_group_tokens, self.num_tokens - row_group * self.row_group_tokens)

    def fault(self) -> str | None:
        """Say what makes this header impossible, or too large to be trusted; None where nothing does."""
        limits = {
            "num_layers": (1, MAX_LAYERS),
            "num_tokens": (0, 1 << 40),
            "d_model": (1, MAX_D_MODEL),
            "row_group_tokens": (1, MAX_BLOCK_VALUES),
            "group_channels": (1, MAX_D_MODEL) if self.codec in STEPPED else (0, 0),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                return f"{name} is {value}, expected {low} to {high}"
        if (re.fullmatch("[0-9a-f]{64}", self.basis) is None) if self.codec == "klt" else self.basis:
            return f"basis is {self.basis[:80]!r}, expected 64 hexadecimal digits for klt and nothing otherwise"
        block = min(self.row_group_tokens, self.num_tokens) * self.d_model
        if block > MAX_BLOCK_VALUES or block * self.num_layers * len(STREAMS) > MAX_ROW_GROUP_VALUES:
            return f"row groups of {self.row_group_tokens} tokens are too large: ask for fewer tokens in each"
        if self.index_bytes(0) > MAX_INDEX_BYTES:
            return f"{self.num_row_groups} row groups of {self.num_layers} layers are too many for one shard"
        return None

    def index_bytes(self, header_bytes: int) -> int:
        """Bytes of header, parameters and table together."""
        pairs = len(STREAMS) * self.num_layers
        parameters = pairs * (4 + 6 * self.d_model) if self.codec in STEPPED else 0
        return header_bytes + parameters + self.num_row_groups * pairs * TABLE_ROW.itemsize


@dataclass(frozen=True, slots=True)
class UniformParameters:
    """Steps and means that codes are scaled by, and the order in which channels are stored."""

    steps_SL: NDArray[np.float32]
    means_SLD: NDArray[np.float32]
    orders_SLD: NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """All that stands before the blocks, checked."""

    version: int
    header: ShardHeader
    parameters: UniformParameters | None
    table_GSL: NDArray[Any]
    object_bytes: int


def block_digest(payload: bytes | memoryview) -> bytes:
    """Name a block's bytes in the table."""
    return hashlib.sha256(payload).digest()[:DIGEST_BYTES]


class Block(NamedTuple):
    """The bytes of a block, and the digest that names them in the table."""

    payload: bytes
    digest: bytes

    @classmethod
    def of(cls, payload: bytes) -> "Block":
        """Take the digest."""
        return cls(payload, block_digest(payload))


def write_index(header: ShardHeader, parameters: UniformParameters | None, blocks: Sequence[Block]) -> bytes:
    """Write everything that stands before the blocks, which follow in the order of row group, stream, layer."""
    fields = asdict(header)
    if not header.basis:
        del fields["basis"]
    encoded = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    if len(encoded) > MAX_HEADER_BYTES:
        raise InvalidArgumentError(
            f"the attributes take {len(encoded)} bytes: expected at most {MAX_HEADER_BYTES}.", field="attributes"
        )
    index_bytes = header.index_bytes(len(encoded))
    table = np.zeros(len(blocks), TABLE_ROW)
    table["length"] = [len(block.payload) for block in blocks]
    start = PRELUDE_BYTES + index_bytes
    table["offset"] = start + np.cumsum(table["length"]) - table["length"]
    table["digest"] = [np.void(block.digest) for block in blocks]
    index = bytearray(encoded)
    if parameters is not None:
        for array in (parameters.steps_SL, parameters.means_SLD, parameters.orders_SLD):
            index += array.astype(array.dtype.newbyteorder("<")).tobytes()
    index += table.tobytes()
    prelude = _PRELUDE.pack(MAGIC, VERSION, len(encoded), index_bytes, start + int(table["length"].sum()))
    return prelude + hashlib.sha256(prelude + index).digest() + bytes(index)


def read_prelude(data: bytes, key: str) -> tuple[int, int, int]:
    """Check the first bytes of a shard; gives the bytes of its header, of its index and of the object."""
    if len(data) < PRELUDE_BYTES:
        _refuse(key, f"it has {len(data)} bytes, a shard has at least {PRELUDE_BYTES}")
    magic, version, header_bytes, index_bytes, object_bytes = _PRELUDE.unpack_from(data)
    if magic != MAGIC:
        _refuse(key, "it does not start as a shard does")
    if not 1 <= version <= VERSION:
        _refuse(key, f"its version is {version}, this reader knows 1 to {VERSION}")
    if header_bytes > MAX_HEADER_BYTES or not header_bytes <= index_bytes <= MAX_INDEX_BYTES:
        _refuse(key, "its header is larger than any shard's")
    if object_bytes < PRELUDE_BYTES + index_bytes:
        _refuse(key, "its sizes contradict each other")
    return header_bytes, index_bytes, object_bytes


def read_index(data: bytes, key: str) -> ShardIndex:
    """Check and read prelude and index. DataLossError."""
    header_bytes, index_bytes, object_bytes = read_prelude(data, key)
    if len(data) < PRELUDE_BYTES + index_bytes:
        _refuse(key, "it ends within its header")
    index = data[PRELUDE_BYTES : PRELUDE_BYTES + index_bytes]
    if hashlib.sha256(data[: _PRELUDE.size] + index).digest() != data[_PRELUDE.size : PRELUDE_BYTES]:
        _refuse(key, "its header does not have the digest that was written with it")
    version = _PRELUDE.unpack_from(data)[1]
    header = _read_header(index[:header_bytes], version, key)
    if index_bytes != header.index_bytes(header_bytes):
        _refuse(key, "its header contradicts its sizes")
    at = header_bytes
    parameters = None
    shape = (len(STREAMS), header.num_layers, header.d_model)
    if header.codec in STEPPED:
        steps = np.frombuffer(index, "<f4", shape[0] * shape[1], at)
        at += steps.nbytes
        means = np.frombuffer(index, "<f4", math.prod(shape), at)
        at += means.nbytes
        orders = np.frombuffer(index, "<u2", math.prod(shape), at)
        at += orders.nbytes
        parameters = UniformParameters(steps.reshape(shape[:2]), means.reshape(shape), orders.reshape(shape))
        if not (np.isfinite(steps).all() and (steps > 0).all() and np.isfinite(means).all()):
            _refuse(key, "its steps or means are no finite numbers")
        if not (np.sort(parameters.orders_SLD, axis=2) == np.arange(shape[2])).all():
            _refuse(key, "its order of channels leaves some out")
    table = np.frombuffer(index, TABLE_ROW, offset=at)
    lengths = table["length"]
    # Checked before they are added, so that no sum wraps around.
    if (lengths > object_bytes).any() or int(lengths.sum(dtype=object)) != object_bytes - PRELUDE_BYTES - index_bytes:
        _refuse(key, "its blocks do not fill it")
    if not (table["offset"] == PRELUDE_BYTES + index_bytes + np.cumsum(lengths) - lengths).all():
        _refuse(key, "its blocks are not in order")
    return ShardIndex(version, header, parameters, table.reshape(header.num_row_groups, *shape[:2]), object_bytes)


def _read_header(encoded: bytes, version: int, key: str) -> ShardHeader:
    types = {"codec": str, "target_fvu": float, "attributes": dict, "basis": str}
    try:
        fields = json.loads(encoded)
        header = ShardHeader(**fields)
    except (ValueError, TypeError, RecursionError):
        _refuse(key, "its header is not of this format")
    if ("basis" in fields) != (header.codec == "klt"):
        _refuse(key, "its header is not of this format")
    if any(type(value) is not types.get(name, int) for name, value in fields.items()):
        _refuse(key, "its header is not of this format")
    if any(type(value) is not str for value in header.attributes.values()):
        _refuse(key, "its attributes are not text")
    if header.codec not in CODECS or (header.codec == "klt" and version == 1):
        _refuse(key, f"its codec is {header.codec[:40]!r}, this reader knows {', '.join(CODECS)}")
    fault = header.fault()
    if fault is not None:
        _refuse(key, fault)
    return header


def _refuse(key: str, why: str) -> NoReturn:
    raise DataLossError(f"shard {key!r} cannot be read: {why}. Restore it from a backup or harvest it again.")
