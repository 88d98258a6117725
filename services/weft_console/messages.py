"""
Protobuf messages as plain JSON for the page.

Field names stay as they are in `proto/`. Maps become objects, enums their short names in lower case, times ISO 8601,
64-bit integers numbers (fixed64 text, since it may exceed what a browser counts exactly), bytes are left out, and a
number that JSON has no form for becomes null.
"""

from __future__ import annotations

import math
from datetime import UTC
from typing import TYPE_CHECKING, Any

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

if TYPE_CHECKING:
    from google._upb import _message

__all__ = ["to_json"]

_FLOATS = (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE)


def to_json(message: Message) -> dict[str, Any]:
    """
    Return the message as a JSON object; a message field that is not set is null, as is an optional one.

    >>> from weft.features.v1.service_pb2 import FeatureLogit
    >>> to_json(FeatureLogit(token_id=3, text=" a", weight=0.5))
    {'token_id': 3, 'text': ' a', 'weight': 0.5}
    """
    result: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if field.type == FieldDescriptor.TYPE_BYTES:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            held = field.message_type.fields_by_name["value"]
            result[field.name] = {str(key): _value(held, item) for key, item in getattr(message, field.name).items()}
        elif field.is_repeated:
            result[field.name] = [_value(field, item) for item in getattr(message, field.name)]
        elif field.has_presence and not message.HasField(field.name):
            # An unset arm of a oneof says nothing; an unset optional field or message says null.
            if field.containing_oneof is None or field.containing_oneof.name.startswith("_"):
                result[field.name] = None
        else:
            result[field.name] = _value(field, getattr(message, field.name))
    return result


def _value(field: FieldDescriptor | _message.FieldDescriptor, value: Any) -> Any:
    if field.enum_type is not None:
        return _enum_name(field.enum_type, value)
    if isinstance(value, Timestamp):
        return value.ToDatetime(UTC).isoformat()
    if isinstance(value, Message):
        return to_json(value)
    if field.type == FieldDescriptor.TYPE_FIXED64:
        return str(value)
    if field.cpp_type in _FLOATS and not math.isfinite(value):
        return None
    return value


def _enum_name(enum: EnumDescriptor | _message.EnumDescriptor, number: int) -> str:
    """`GRAPH_STATE_RUNNING` is `running`: the prefix is the enum's own name, as the style of `proto/` has it."""
    value = enum.values_by_number.get(number)
    if value is None:
        return str(number)
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return str(value.name.removeprefix(prefix).lower())
