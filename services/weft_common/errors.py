"""
Every error that weft raises on purpose, each with its gRPC code and whether trying again helps.

    WeftError
    ├── InvalidArgumentError         INVALID_ARGUMENT      the request is wrong, whatever the state of the system
    │   └── ShapeError               INVALID_ARGUMENT      the dims of two arrays disagree
    ├── NotFoundError                NOT_FOUND             the thing named does not exist
    ├── AlreadyExistsError           ALREADY_EXISTS        another thing has that name
    ├── FailedPreconditionError      FAILED_PRECONDITION   the thing is in the wrong state for this request
    ├── ConflictError                ABORTED               a conditional write lost its race          (retryable)
    ├── ResourceExhaustedError       RESOURCE_EXHAUSTED    a limit of this service is reached         (retryable)
    │   └── StorageFullError         RESOURCE_EXHAUSTED    no space is left to write to
    ├── UnauthenticatedError         UNAUTHENTICATED       no token, or not the right one
    ├── PermissionDeniedError        PERMISSION_DENIED     the caller is known and may not do this
    ├── DeadlineExceededError        DEADLINE_EXCEEDED     the time given was not enough              (retryable)
    ├── CancelledError               CANCELLED             the caller asked for it to stop
    ├── UnavailableError             UNAVAILABLE           the service cannot answer now              (retryable)
    ├── DataLossError                DATA_LOSS             stored or sent bytes fail their check
    ├── UnimplementedError           UNIMPLEMENTED         this build cannot do that
    └── InternalError                INTERNAL              a fault of weft's own

The one mapping to google.rpc.Status is `weft_common.status`. This module imports nothing but the standard library,
so that the mathematics (`weft_clt`) can raise these errors too.
"""

from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import ClassVar

__all__ = [
    "AlreadyExistsError",
    "CancelledError",
    "Code",
    "ConflictError",
    "DataLossError",
    "DeadlineExceededError",
    "FailedPreconditionError",
    "InternalError",
    "InvalidArgumentError",
    "NotFoundError",
    "PermissionDeniedError",
    "ResourceExhaustedError",
    "ShapeError",
    "StorageFullError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "WeftError",
    "error_class",
]


class Code(IntEnum):
    """The codes of google.rpc.Code, which are those of gRPC."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class WeftError(Exception):
    """
    The root of the tree: a message for a person, and details for a program.

    Args:
        message: What was wrong, what was expected, what to do.
        field: The field of the request that is wrong, as a path: `shards[3].sha256`.
        metadata: Further facts, small, as text; they travel in ErrorInfo.
        retry_after_s: Seconds after which trying again may help; they travel in RetryInfo.

    >>> NotFoundError("no dataset x").code.name
    'NOT_FOUND'
    """

    code: ClassVar[Code] = Code.INTERNAL
    # Whether the same request may succeed later, unchanged.
    retryable: ClassVar[bool] = False
    # What ErrorInfo.reason says; it names the class to the other side.
    reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.metadata = dict(metadata or {})
        self.retry_after_s = retry_after_s


class InvalidArgumentError(WeftError):
    code = Code.INVALID_ARGUMENT
    reason = "INVALID_ARGUMENT"


class ShapeError(InvalidArgumentError):
    reason = "SHAPE_MISMATCH"


class NotFoundError(WeftError):
    code = Code.NOT_FOUND
    reason = "NOT_FOUND"


class AlreadyExistsError(WeftError):
    code = Code.ALREADY_EXISTS
    reason = "ALREADY_EXISTS"


class FailedPreconditionError(WeftError):
    code = Code.FAILED_PRECONDITION
    reason = "FAILED_PRECONDITION"


class ConflictError(WeftError):
    code = Code.ABORTED
    retryable = True
    reason = "CONFLICT"


class ResourceExhaustedError(WeftError):
    code = Code.RESOURCE_EXHAUSTED
    retryable = True
    reason = "RESOURCE_EXHAUSTED"


class StorageFullError(ResourceExhaustedError):
    retryable = False
    reason = "STORAGE_FULL"


class UnauthenticatedError(WeftError):
    code = Code.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class PermissionDeniedError(WeftError):
    code = Code.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"


class DeadlineExceededError(WeftError):
    code = Code.DEADLINE_EXCEEDED
    retryable = True
    reason = "DEADLINE_EXCEEDED"


class CancelledError(WeftError):
    code = Code.CANCELLED
    reason = "CANCELLED"


class UnavailableError(WeftError):
    code = Code.UNAVAILABLE
    retryable = True
    reason = "UNAVAILABLE"


class DataLossError(WeftError):
    code = Code.DATA_LOSS
    reason = "DATA_LOSS"


class UnimplementedError(WeftError):
    code = Code.UNIMPLEMENTED
    reason = "UNIMPLEMENTED"


class InternalError(WeftError):
    code = Code.INTERNAL
    reason = "INTERNAL"


# Codes that no class of ours raises, but that other servers may send.
_FOREIGN: Mapping[Code, type[WeftError]] = {Code.OUT_OF_RANGE: InvalidArgumentError}


def _subclasses(root: type[WeftError]) -> Iterator[type[WeftError]]:
    for child in root.__subclasses__():
        yield child
        yield from _subclasses(child)


def error_class(code: int, reason: str = "") -> type[WeftError]:
    """
    Find the class that a code, and where there is one a reason, stand for.

    A reason of another code, or one that this process does not know, falls back to the code alone.

    >>> error_class(8, "STORAGE_FULL").__name__, error_class(8, "QUOTA").__name__
    ('StorageFullError', 'ResourceExhaustedError')
    """
    candidates = [cls for cls in _subclasses(WeftError) if cls.code == code]
    for cls in candidates:
        if cls.reason == reason:
            return cls
    if candidates:
        return candidates[0]
    return _FOREIGN.get(Code(code), InternalError) if code in set(Code) else InternalError
