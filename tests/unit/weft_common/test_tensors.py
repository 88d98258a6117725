"""Arrays on the wire."""

import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from weft.activations.v1 import service_pb2
from weft.common.v1 import tensor_pb2
from weft_common.errors import DataLossError, InvalidArgumentError, ResourceExhaustedError
from weft_common.tensors import TensorAssembler, chunk_tensor, encode_chunks, tensor_from_proto, tensor_to_proto

DTYPES = [np.dtype(name) for name in ("<f4", "<f8", "<f2", "<i4", "<i8", ">f4", ">i8")]
ARRAYS = st.sampled_from(DTYPES).flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0)))


def same(left: np.ndarray, right: np.ndarray) -> bool:
    return left.shape == right.shape and left.tobytes() == right.astype(right.dtype.newbyteorder("=")).tobytes()


@given(ARRAYS)
def test_tensor_round_trip_is_bit_for_bit(array: np.ndarray) -> None:
    """Every type, shape and byte order comes back with the same bits, NaNs included."""
    back = tensor_from_proto(tensor_to_proto(array), max_bytes=1 << 20)
    assert same(back, array)
    assert back.dtype.isnative
    assert back.flags.writeable


@given(ARRAYS, st.integers(1, 40))
def test_chunks_assemble_to_the_same_array(array: np.ndarray, chunk_bytes: int) -> None:
    """Any cut comes together again, and only the last piece completes it."""
    assembler = TensorAssembler(1 << 20)
    results = [assembler.add(chunk) for chunk in chunk_tensor("x", array, chunk_bytes)]
    assembler.finish()
    assert all(result is None for result in results[:-1])
    assert results[-1] is not None
    name, back = results[-1]
    assert name == "x"
    assert same(back, array)


@given(ARRAYS, st.integers(1, 400))
def test_encoded_chunks_are_the_messages_that_the_stubs_would_send(array: np.ndarray, chunk_bytes: int) -> None:
    """What is encoded by hand decodes to the message of the same chunk, whatever its size."""
    encoded = list(encode_chunks(service_pb2.CaptureResponse.CHUNK_FIELD_NUMBER, "x", array, chunk_bytes))
    expected = [service_pb2.CaptureResponse(chunk=chunk) for chunk in chunk_tensor("x", array, chunk_bytes)]
    assert [service_pb2.CaptureResponse.FromString(each) for each in encoded] == expected


@pytest.mark.parametrize("num_bytes", [127, 128, 16383, 16384, 1 << 21])
def test_encoded_chunk_tells_its_length_at_every_size_of_varint(num_bytes: int) -> None:
    """Lengths of one to four bytes on the wire decode alike."""
    array = np.arange(num_bytes // 4 + 1, dtype=np.int32)
    (encoded,) = encode_chunks(service_pb2.CaptureResponse.CHUNK_FIELD_NUMBER, "x", array, 1 << 22)
    chunk = service_pb2.CaptureResponse.FromString(encoded).chunk
    assert chunk.data == array.tobytes()
    assert chunk.crc32 == zlib.crc32(array.tobytes())


def test_assembled_array_of_one_piece_or_many_may_be_written_to() -> None:
    """Whoever reads a capture owns it, and a message that it came from stays as it was."""
    array = np.arange(6, dtype=np.float32)
    for chunk_bytes in (8, 24):
        assembler = TensorAssembler(1 << 10)
        pieces = list(chunk_tensor("x", array, chunk_bytes))
        done = [assembler.add(piece) for piece in pieces][-1]
        assert done is not None
        done[1][:] = -1
        assert b"".join(piece.data for piece in pieces) == array.tobytes()


def test_non_contiguous_array_is_sent_row_major() -> None:
    """A transposed view arrives as what it shows."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    assert np.array_equal(tensor_from_proto(tensor_to_proto(array), max_bytes=100), array)


@given(hnp.arrays(np.float32, 20, elements=st.floats(width=32, allow_nan=True)))
def test_bfloat16_rounds_to_nearest(array: np.ndarray) -> None:
    """As bfloat16 every value goes where torch rounds it to, and NaN stays NaN."""
    sent = tensor_to_proto(array, data_type=tensor_pb2.DATA_TYPE_BFLOAT16)
    back = tensor_from_proto(sent, max_bytes=100)
    expected = torch.from_numpy(array.copy()).to(torch.bfloat16).to(torch.float32).numpy()
    assert back.dtype == np.float32
    assert np.array_equal(back, expected, equal_nan=True)
    assert np.array_equal(np.signbit(back)[~np.isnan(array)], np.signbit(array)[~np.isnan(array)])


@pytest.mark.parametrize(
    ("tensor", "match"),
    [
        (tensor_pb2.Tensor(shape=[1], data=b"1234"), "data_type is 0"),
        (tensor_pb2.Tensor(data_type=77, shape=[1], data=b"1234"), "data_type is 77"),
        (tensor_pb2.Tensor(data_type=1, shape=[-1], data=b""), "none negative"),
        (tensor_pb2.Tensor(data_type=1, shape=[1] * 17, data=b"1234"), "at most 16"),
        (tensor_pb2.Tensor(data_type=1, shape=[2], data=b"1234"), "needs 8"),
        (tensor_pb2.Tensor(data_type=1, shape=[2**40, 2**40], data=b""), "at most 64 are accepted"),
        (tensor_pb2.Tensor(data_type=1, shape=[32], data=bytes(128)), "at most 64 are accepted"),
    ],
)
def test_bad_tensor_is_refused(tensor: tensor_pb2.Tensor, match: str) -> None:
    """Unknown types, impossible shapes and wrong lengths are named."""
    with pytest.raises(InvalidArgumentError, match=match):
        tensor_from_proto(tensor, max_bytes=64)


def test_unsendable_array_is_refused() -> None:
    """A type that the wire does not have is named, with those that it has."""
    with pytest.raises(InvalidArgumentError, match="complex128"):
        tensor_to_proto(np.zeros(1, np.complex128))


def chunks() -> list[tensor_pb2.TensorChunk]:
    return list(chunk_tensor("x", np.arange(6, dtype=np.float32), 8))


def altered(chunk: tensor_pb2.TensorChunk, **fields: object) -> tensor_pb2.TensorChunk:
    changed = tensor_pb2.TensorChunk()
    changed.CopyFrom(chunk)
    for name, value in fields.items():
        if name == "shape":
            changed.shape[:] = value  # type: ignore[assignment]
        else:
            setattr(changed, name, value)
    if "crc32" not in fields:
        changed.crc32 = zlib.crc32(changed.data)
    return changed


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"data": b"12345678", "crc32": 7}, "CRC"),
        ({"offset_bytes": 16}, "byte 8 comes next"),
        ({"offset_bytes": 0}, "byte 8 comes next"),
        ({"shape": [7]}, "later piece says"),
        ({"data_type": tensor_pb2.DATA_TYPE_INT32}, "later piece says"),
        ({"data": bytes(24)}, "has 24 bytes"),
        ({"data": b""}, "is empty"),
    ],
)
def test_damaged_piece_is_data_loss(fields: dict[str, object], match: str) -> None:
    """A flipped, missing, repeated, contradicting or overlong piece never becomes numbers."""
    first, second, _ = chunks()
    assembler = TensorAssembler(1 << 10)
    assembler.add(first)
    with pytest.raises(DataLossError, match=match):
        assembler.add(altered(second, **fields))


def test_missing_end_is_data_loss() -> None:
    """A stream that ends early is noticed."""
    assembler = TensorAssembler(1 << 10)
    assembler.add(chunks()[0])
    with pytest.raises(DataLossError, match="8 of 24 bytes"):
        assembler.finish()


def test_assembler_is_bounded_over_all_tensors() -> None:
    """Several tensors in progress share one bound, announced sizes counting in full."""
    assembler = TensorAssembler(40)
    assembler.add(chunks()[0])
    with pytest.raises(ResourceExhaustedError, match="48 bytes"):
        assembler.add(altered(chunks()[0], tensor_name="y"))


def test_interleaved_tensors_assemble() -> None:
    """Pieces of two tensors may alternate."""
    left, right = np.arange(6, dtype=np.float32), np.arange(6, dtype=np.int32) * 3
    assembler = TensorAssembler(48)
    found = {}
    for pair in zip(chunk_tensor("l", left, 8), chunk_tensor("r", right, 8), strict=True):
        for chunk in pair:
            if (whole := assembler.add(chunk)) is not None:
                found[whole[0]] = whole[1]
    assert np.array_equal(found["l"], left)
    assert np.array_equal(found["r"], right)
