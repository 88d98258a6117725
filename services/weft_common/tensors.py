"""
Arrays on the wire: weft.common.v1.Tensor and TensorChunk, as NumPy arrays and back.

bfloat16 has no type in NumPy: it is read as float32, which holds every value of it, and written on request by rounding
float32 to nearest, ties to even. Nothing is allocated before the announced size is known to be allowed.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from isal.isal_zlib import crc32

from weft.common.v1 import tensor_pb2
from weft_common.errors import DataLossError, InvalidArgumentError, ResourceExhaustedError
from weft_common.wire import encode_with_bytes

__all__ = ["TensorAssembler", "chunk_tensor", "encode_chunks", "tensor_from_proto", "tensor_to_proto"]

Array = npt.NDArray[Any]
DataType = tensor_pb2.DataType

_DTYPES: dict[DataType.ValueType, np.dtype[Any]] = {
    tensor_pb2.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    tensor_pb2.DATA_TYPE_FLOAT64: np.dtype("<f8"),
    tensor_pb2.DATA_TYPE_BFLOAT16: np.dtype("<u2"),
    tensor_pb2.DATA_TYPE_FLOAT16: np.dtype("<f2"),
    tensor_pb2.DATA_TYPE_INT32: np.dtype("<i4"),
    tensor_pb2.DATA_TYPE_INT64: np.dtype("<i8"),
}
_TYPES = {dtype.newbyteorder("="): kind for kind, dtype in _DTYPES.items() if kind != tensor_pb2.DATA_TYPE_BFLOAT16}
_MAX_DIMS = 16


def tensor_to_proto(array: Array, *, data_type: DataType.ValueType | None = None) -> tensor_pb2.Tensor:
    """
    Put an array on the wire, in its own element type or, for float32, as bfloat16.

    Raises:
        InvalidArgumentError: The array's type is not one of DataType.

    >>> tensor_to_proto(np.zeros((2, 3), np.float32)).shape
    [2, 3]
    """
    kind, raw = _encode(array, data_type)
    return tensor_pb2.Tensor(data_type=kind, shape=array.shape, data=bytes(raw))


def tensor_from_proto(tensor: tensor_pb2.Tensor, *, max_bytes: int, field: str = "tensor") -> Array:
    """
    Take an array off the wire; the array owns its memory and may be written to.

    Args:
        max_bytes: Largest `data` accepted.
        field: Where the tensor stands in the request, for messages.

    Raises:
        InvalidArgumentError: Unknown type, a negative or too large shape, or data of another length.
    """
    num_bytes = _num_bytes(tensor.data_type, tensor.shape, field)
    if num_bytes > max_bytes:
        raise InvalidArgumentError(
            f"{field} has shape {list(tensor.shape)}, {num_bytes} bytes; at most {max_bytes} are accepted", field=field
        )
    if len(tensor.data) != num_bytes:
        raise InvalidArgumentError(
            f"{field}.data has {len(tensor.data)} bytes; shape {list(tensor.shape)} of "
            f"{tensor_pb2.DataType.Name(tensor.data_type)} needs {num_bytes}",
            field=f"{field}.data",
        )
    return _decode(tensor.data_type, tensor.shape, tensor.data)


def chunk_tensor(
    name: str, array: Array, chunk_bytes: int = 1 << 20, *, data_type: DataType.ValueType | None = None
) -> Iterator[tensor_pb2.TensorChunk]:
    """Cut an array into pieces of at most `chunk_bytes`, in order; an empty array is one empty piece."""
    for chunk, piece in _cut(name, array, chunk_bytes, data_type):
        chunk.data = bytes(piece)
        yield chunk


def encode_chunks(field_number: int, name: str, array: Array, chunk_bytes: int = 1 << 20) -> Iterator[bytes]:
    """
    Cut an array as `chunk_tensor` does, and copy its bytes once.

    Args:
        field_number: Which field of the message that is sent the chunk is; it has no other.

    Yields:
        That message, encoded; the array must stay as it is until then.
    """
    for chunk, piece in _cut(name, array, chunk_bytes, None):
        yield encode_with_bytes(field_number, chunk, tensor_pb2.TensorChunk.DATA_FIELD_NUMBER, piece)


class TensorAssembler:
    """
    Puts chunked tensors together again; pieces of several tensors may come interleaved.

    Args:
        max_bytes: Most that all tensors in progress may hold together.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._open: dict[str, tuple[DataType.ValueType, tuple[int, ...], int, bytearray]] = {}

    def add(self, chunk: tensor_pb2.TensorChunk) -> tuple[str, Array] | None:
        """
        Take one piece; return the name and the array once it is complete.

        Raises:
            DataLossError: A piece fails its CRC, is out of order, too long, or contradicts an earlier one.
            ResourceExhaustedError: The tensors in progress would hold more than `max_bytes`.
            InvalidArgumentError: Unknown element type or impossible shape.
        """
        name = chunk.tensor_name
        data = chunk.data  # every look at the field copies it
        if crc32(data) != chunk.crc32:
            raise DataLossError(
                f"a piece of tensor {name!r} at byte {chunk.offset_bytes} fails its CRC; ask for it again"
            )
        shape = tuple(chunk.shape)
        if name not in self._open:
            self._begin(name, chunk.data_type, shape)
        kind, wanted_shape, num_bytes, buffer = self._open[name]
        if (chunk.data_type, shape) != (kind, wanted_shape):
            raise DataLossError(
                f"tensor {name!r} began with shape {list(wanted_shape)}; a later piece says {list(shape)} "
                f"of {tensor_pb2.DataType.Name(chunk.data_type)}"
            )
        if chunk.offset_bytes != len(buffer):
            raise DataLossError(
                f"a piece of tensor {name!r} starts at byte {chunk.offset_bytes}; byte {len(buffer)} comes next"
            )
        if len(buffer) + len(data) > num_bytes:
            raise DataLossError(
                f"tensor {name!r} has {num_bytes} bytes; its pieces hold {len(buffer) + len(data)} already"
            )
        if not data and num_bytes:
            raise DataLossError(f"a piece of tensor {name!r} at byte {chunk.offset_bytes} is empty")
        if len(data) == num_bytes:
            del self._open[name]
            return name, _decode(kind, wanted_shape, data)
        buffer += data
        if len(buffer) < num_bytes:
            return None
        del self._open[name]
        return name, _decode(kind, wanted_shape, buffer)

    def finish(self) -> None:
        """
        Say that no piece follows.

        Raises:
            DataLossError: A tensor is incomplete.
        """
        for name, (_, _, num_bytes, buffer) in self._open.items():
            raise DataLossError(f"tensor {name!r} ended after {len(buffer)} of {num_bytes} bytes; ask for it again")

    def _begin(self, name: str, kind: DataType.ValueType, shape: tuple[int, ...]) -> None:
        num_bytes = _num_bytes(kind, shape, f"tensor {name!r}")
        promised = num_bytes + sum(size for _, _, size, _ in self._open.values())
        if promised > self._max_bytes:
            raise ResourceExhaustedError(
                f"tensor {name!r} of shape {list(shape)} brings the tensors in progress to {promised} bytes; "
                f"at most {self._max_bytes} are held"
            )
        self._open[name] = (kind, shape, num_bytes, bytearray())


def _num_bytes(kind: DataType.ValueType, shape: Sequence[int], field: str) -> int:
    if kind not in _DTYPES:
        raise InvalidArgumentError(
            f"{field}.data_type is {kind}; give one of {', '.join(DataType.Name(known) for known in _DTYPES)}",
            field=f"{field}.data_type",
        )
    if len(shape) > _MAX_DIMS or any(size < 0 for size in shape):
        raise InvalidArgumentError(
            f"{field}.shape is {list(shape)[: _MAX_DIMS + 1]}; at most {_MAX_DIMS} sizes, none negative, are accepted",
            field=f"{field}.shape",
        )
    return math.prod(shape) * _DTYPES[kind].itemsize


def _cut(
    name: str, array: Array, chunk_bytes: int, data_type: DataType.ValueType | None
) -> Iterator[tuple[tensor_pb2.TensorChunk, memoryview]]:
    """Yield each chunk without its bytes, and the bytes, which are the array's own where they can be."""
    if chunk_bytes < 1:
        raise InvalidArgumentError(f"chunk_bytes is {chunk_bytes}; it must be at least 1", field="chunk_bytes")
    kind, raw = _encode(array, data_type)
    for offset in range(0, max(len(raw), 1), chunk_bytes):
        piece = raw[offset : offset + chunk_bytes]
        chunk = tensor_pb2.TensorChunk(
            tensor_name=name,
            data_type=kind,
            shape=array.shape,
            offset_bytes=offset,
            crc32=crc32(piece),
        )
        yield chunk, piece


def _encode(array: Array, data_type: DataType.ValueType | None) -> tuple[DataType.ValueType, memoryview]:
    if data_type == tensor_pb2.DATA_TYPE_BFLOAT16 and array.dtype == np.float32:
        return data_type, _bytes_of(_to_bfloat16(array))
    kind = _TYPES.get(array.dtype.newbyteorder("="))
    if kind is None or data_type not in (None, kind):
        wanted = "one of them" if data_type is None else DataType.Name(data_type)
        raise InvalidArgumentError(
            f"an array of {array.dtype} cannot be sent as {wanted}; convert it to one of "
            f"{', '.join(sorted(str(dtype) for dtype in _TYPES))} first"
        )
    return kind, _bytes_of(array.astype(_DTYPES[kind], copy=False))


def _bytes_of(array: Array) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _decode(kind: DataType.ValueType, shape: Sequence[int], raw: bytes | bytearray) -> Array:
    """Return an array that may be written to; a bytearray becomes its memory and must not be used any more."""
    flat: Array = np.frombuffer(raw, dtype=_DTYPES[kind])
    if kind == tensor_pb2.DATA_TYPE_BFLOAT16:
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    else:
        flat = flat.astype(_DTYPES[kind].newbyteorder("="), copy=not flat.flags.writeable)
    return flat.reshape(tuple(shape))


def _to_bfloat16(array: Array) -> npt.NDArray[np.uint16]:
    bits = np.ascontiguousarray(array).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    # A NaN stays one: the rounding above could carry it to infinity.
    return np.where(np.isnan(array), (bits >> 16) | 0x40, rounded).astype("<u2")
