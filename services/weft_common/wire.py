"""
Below the stubs: requests that do not decode, and messages of many bytes.

protobuf refuses text that is not UTF-8 without a word on where it is; the caller deserves to know. Its Python runtime
copies bytes when they become a field, when that message becomes a field of another, and twice more when it is encoded;
here they are copied once.
"""

from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from weft_common.errors import InvalidArgumentError

__all__ = ["decode_request", "encode_with_bytes", "encoder", "find_bad_text"]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_DEPTH = 32


def decode_request(deserializer: Callable[[bytes], Any], raw: bytes) -> Any:
    """
    Decode a request.

    Raises:
        InvalidArgumentError: The bytes are no such message.
    """
    try:
        return deserializer(raw)
    except (DecodeError, UnicodeDecodeError):
        pass
    owner = getattr(deserializer, "__self__", None)
    if not (isinstance(owner, type) and issubclass(owner, Message)):
        raise InvalidArgumentError("the request does not decode; encode it with the stubs of this service")
    descriptor: Any = owner.DESCRIPTOR
    path = find_bad_text(descriptor, raw)
    if path is not None:
        raise InvalidArgumentError(f"{path} holds bytes that are not UTF-8; send text as UTF-8", field=path)
    raise InvalidArgumentError(
        f"the request is not a {descriptor.full_name}: it is cut short or was encoded from other stubs; "
        "encode it with the stubs of this service"
    )


def encode_with_bytes(field_number: int, message: Message, bytes_field_number: int, data: bytes | memoryview) -> bytes:
    """
    Encode a message that has nothing but another message in a field, whose last field is bytes.

    Args:
        field_number: Where `message` goes.
        message: Has no bytes yet.
        bytes_field_number: Where the bytes go in `message`.
        data: The bytes.
    """
    inner = message.SerializeToString()
    before = _encoded_varint(bytes_field_number << 3 | _BYTES) + _encoded_varint(len(data))
    length = _encoded_varint(len(inner) + len(before) + len(data))
    return b"".join((_encoded_varint(field_number << 3 | _BYTES), length, inner, before, data))


def encoder(serializer: Callable[[Any], bytes] | None) -> Callable[[Any], bytes]:
    """Return a serializer that leaves alone what is encoded already; without one, that is all there may be."""

    def encode(message: Any) -> bytes:
        return message if serializer is None or isinstance(message, bytes) else serializer(message)

    return encode


def find_bad_text(descriptor: Any, raw: bytes, depth: int = 0) -> str | None:
    """Return the path of the first string field whose bytes are not UTF-8; None where there is none to be found."""
    position = 0
    while position < len(raw) and depth < _MAX_DEPTH:
        tag, position = _varint(raw, position)
        field = descriptor.fields_by_number.get(tag >> 3)
        kind = tag & 7
        if kind == _VARINT:
            _, position = _varint(raw, position)
        elif kind == _FIXED64:
            position += 8
        elif kind == _FIXED32:
            position += 4
        elif kind == _BYTES:
            length, position = _varint(raw, position)
            path = _bad_text_in(field, raw[position : position + length], depth)
            if path is not None:
                return path
            position += length
        else:
            return None
    return None


def _bad_text_in(field: FieldDescriptor | None, value: bytes, depth: int) -> str | None:
    if field is None:
        return None
    if field.type == FieldDescriptor.TYPE_STRING:
        try:
            value.decode()
        except UnicodeDecodeError:
            return str(field.name)
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        inner = find_bad_text(field.message_type, value, depth + 1)
        if inner is not None:
            return f"{field.name}.{inner}"
    return None


def _varint(raw: bytes, position: int) -> tuple[int, int]:
    """Read one varint; past the end, or over 64 bits, the position returned is the end."""
    value = 0
    for index in range(position, min(position + 10, len(raw))):
        value |= (raw[index] & 0x7F) << (7 * (index - position))
        if raw[index] < 0x80:
            return value, index + 1
    return 0, len(raw)


def _encoded_varint(value: int) -> bytes:
    raw = bytearray()
    while value > 0x7F:
        raw.append(value & 0x7F | 0x80)
        value >>= 7
    raw.append(value)
    return bytes(raw)
