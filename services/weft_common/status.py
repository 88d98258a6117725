"""
The one mapping between weft's errors and google.rpc.Status.

Every status carries ErrorInfo (reason, domain, metadata); BadRequest where a field is to blame; RetryInfo where the
error says when to try again. A status travels in trailing metadata, which has a size limit of about 8 KiB in all, so
texts are cut to fit.
"""

from typing import TypeVar

from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from weft_common.errors import WeftError, error_class

__all__ = ["DOMAIN", "error_from_status", "status_from_error"]

DOMAIN = "weft"
# In UTF-8. The message travels twice, once percent-encoded (up to three bytes for each).
_MAX_MESSAGE_BYTES = 1024
_MAX_METADATA_VALUE_BYTES = 256
_MAX_METADATA_ENTRIES = 8

_Detail = TypeVar("_Detail", bound=Message)


def status_from_error(error: WeftError) -> status_pb2.Status:
    """
    Turn an error into the status that a client or an operation is given.

    >>> status_from_error(WeftError("lost a cog")).details[0].type_url
    'type.googleapis.com/google.rpc.ErrorInfo'
    """
    message = _cut(error.message, _MAX_MESSAGE_BYTES)
    status = status_pb2.Status(code=int(error.code), message=message)
    metadata = {
        _cut(name, _MAX_METADATA_VALUE_BYTES): _cut(value, _MAX_METADATA_VALUE_BYTES)
        for name, value in list(error.metadata.items())[:_MAX_METADATA_ENTRIES]
    }
    _pack(status, error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata))
    if error.field is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=_cut(error.field, _MAX_METADATA_VALUE_BYTES), description=_cut(message, _MAX_METADATA_VALUE_BYTES)
        )
        _pack(status, error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(round(error.retry_after_s * 1e9))
        _pack(status, error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def error_from_status(status: status_pb2.Status) -> WeftError:
    """Turn a status back into the error that it was made from, as far as this process knows its class."""
    reason = ""
    field = None
    metadata: dict[str, str] = {}
    retry_after_s = None
    for detail in status.details:
        if (info := _unpack(detail, error_details_pb2.ErrorInfo)) is not None:
            metadata = dict(info.metadata)
            reason = info.reason if info.domain == DOMAIN else ""
        elif (bad := _unpack(detail, error_details_pb2.BadRequest)) is not None and bad.field_violations:
            field = bad.field_violations[0].field
        elif (retry := _unpack(detail, error_details_pb2.RetryInfo)) is not None:
            retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    cls = error_class(status.code, reason)
    return cls(status.message, field=field, metadata=metadata, retry_after_s=retry_after_s)


def _unpack(packed: any_pb2.Any, kind: type[_Detail]) -> _Detail | None:
    """Return the detail if it is of this kind; a detail that does not decode is passed over."""
    if packed.TypeName() != kind.DESCRIPTOR.full_name:
        return None
    detail = kind()
    try:
        detail.ParseFromString(packed.value)
    except DecodeError:
        return None
    return detail


def _pack(status: status_pb2.Status, detail: Message) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)
    status.details.append(packed)


def _cut(text: str, max_bytes: int) -> str:
    raw = text.encode("utf-8", "replace")
    if len(raw) <= max_bytes:
        return raw.decode()
    return raw[: max_bytes - 3].decode("utf-8", "ignore") + "..."
