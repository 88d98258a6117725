"""
The object store as the services see it: whole immutable objects under keys, conditional writes, ranged reads.

Every adapter keeps this contract and the suite in `tests/contract/test_object_store.py` runs over all of them. Calls
block; asyncio code goes through `asyncio.to_thread`. An adapter may be used from many threads at once.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from weft_common.errors import InvalidArgumentError

MAX_KEY_BYTES = 1024
_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
_PREFIX = re.compile(r"([A-Za-z0-9_-][A-Za-z0-9._-]*/)*([A-Za-z0-9_-][A-Za-z0-9._-]*)?")


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """
    What is known of an object without its bytes.

    Attributes:
        key: Name in the bucket.
        size_bytes: Length of the object.
        etag: Opaque version, to be handed back as `if_match`; empty in listings, where it is not asked for.
        modified_s: Seconds since 1970 of the last write.
    """

    key: str
    size_bytes: int
    etag: str
    modified_s: float


class RangedReads(Protocol):
    """What reads parts of objects: a bucket, or something before one."""

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Read `length` bytes from `offset`, or to the end; fewer where the object ends before. NotFoundError."""
        ...


@runtime_checkable
class ObjectStore(Protocol):
    """
    A bucket.

    Raises (every call): InvalidArgumentError for a malformed key, UnavailableError where the bucket cannot be reached,
    PermissionDeniedError or UnauthenticatedError where it refuses us, StorageFullError where no space is left.
    """

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Read `length` bytes from `offset`, or to the end; fewer where the object ends before. NotFoundError."""
        ...

    def get_with_info(self, key: str) -> tuple[bytes, ObjectInfo]:
        """Read a whole object and the version that exactly these bytes are. NotFoundError."""
        ...

    def info(self, key: str) -> ObjectInfo:
        """Describe an object. NotFoundError."""
        ...

    def put(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> ObjectInfo:
        """
        Write an object as a whole: readers see the old bytes or the new ones, also after a crash.

        Args:
            key: Where; no key may be a folder of another (`a` and `a/b`); all but S3 refuse it.
            data: The object.
            if_absent: Write only where there is no object: AlreadyExistsError.
            if_match: Write only over this version: ConflictError, also where there is no object.
        """
        ...

    def put_file(self, key: str, path: Path) -> ObjectInfo:
        """Write a file's bytes as an object, without holding them in memory."""
        ...

    def get_to_file(self, key: str, path: Path) -> ObjectInfo:
        """Write an object's bytes to a file, which is whole or not there. NotFoundError."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Walk the objects whose key starts with `prefix`, in order of their keys."""
        ...

    def list_folders(self, prefix: str) -> Iterator[str]:
        """Name the folders right below `prefix` (which is empty or ends in a slash), in order, without slashes."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no error."""
        ...

    def presign_get(self, key: str, expires_s: int) -> str:
        """Make a URL that reads this object without credentials for a while; empty where there is no such thing."""
        ...

    def presign_put(self, key: str, expires_s: int) -> str:
        """Make a URL that writes this object without credentials for a while; empty where there is no such thing."""
        ...


def check_key(key: str) -> str:
    """Return the key, or raise InvalidArgumentError where it is no key."""
    if len(key) > MAX_KEY_BYTES or not _KEY.fullmatch(key):
        raise InvalidArgumentError(
            f"{key[:80]!r} is no object key: expected at most {MAX_KEY_BYTES} characters, parts of letters, digits, "
            "'.', '_' and '-' that do not start with '.', joined by '/'.",
            field="key",
        )
    return key


def check_prefix(prefix: str, *, folder: bool = False) -> str:
    """Return the prefix, or raise InvalidArgumentError where no key could start with it (or it names no folder)."""
    if len(prefix) > MAX_KEY_BYTES or not _PREFIX.fullmatch(prefix):
        raise InvalidArgumentError(
            f"{prefix[:80]!r} is no key prefix: expected the beginning of an object key, such as 'runs/'.",
            field="prefix",
        )
    if folder and prefix and not prefix.endswith("/"):
        raise InvalidArgumentError(f"{prefix!r} is no folder: expected a prefix that ends in '/'.", field="prefix")
    return prefix


def check_condition(*, if_absent: bool, if_match: str | None) -> None:
    """Refuse a write that is to find nothing and something at once."""
    if if_absent and if_match is not None:
        raise InvalidArgumentError("a put has both if_absent and if_match: give one of them.", field="if_match")


def check_range(offset: int, length: int | None) -> None:
    """Refuse a range that starts before the object or is shorter than nothing."""
    if offset < 0 or (length is not None and length < 0):
        raise InvalidArgumentError(
            f"cannot read {length} bytes from {offset}: expected an offset and a length that are not negative.",
            field="offset",
        )
