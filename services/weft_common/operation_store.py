"""
Where the state of long work lies, and the form it has there.

The store is a Protocol of blocking calls; a bucket implements it (`weft_store.ObjectOperationStore`), and so does
memory, here, for what need not outlive its process. Every change is a conditional write, so that replicas never
overwrite each other's.
"""

import base64
import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from google.longrunning import operations_pb2
from google.protobuf import any_pb2
from google.rpc import status_pb2

from weft_common.errors import AlreadyExistsError, ConflictError, DataLossError, InternalError, NotFoundError

__all__ = ["MemoryOperationStore", "OperationStore", "Record", "change_record", "read_record"]

_MAX_WRITE_ATTEMPTS = 50


class OperationStore(Protocol):
    """Small documents under the names of operations; called from threads."""

    def get(self, name: str) -> tuple[bytes, str]:
        """Return the document and its version. NotFoundError."""
        ...

    def put(self, name: str, data: bytes, *, etag: str | None, create: bool) -> str:
        """Write a new document (`create`) or over the version `etag`; return the new version. ConflictError."""
        ...

    def list(self) -> list[str]:
        """Return the names of all documents."""
        ...

    def delete(self, name: str) -> None:
        """Remove a document; one that is not there is no error."""
        ...


class MemoryOperationStore:
    """Operations that last as long as their process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._documents: dict[str, tuple[bytes, int]] = {}
        self._version = 0

    def get(self, name: str) -> tuple[bytes, str]:
        with self._lock:
            if name not in self._documents:
                raise NotFoundError(f"there is no operation {name!r}")
            data, version = self._documents[name]
            return data, str(version)

    def put(self, name: str, data: bytes, *, etag: str | None, create: bool) -> str:
        with self._lock:
            there = self._documents.get(name)
            if create and there is not None:
                raise ConflictError(f"operation {name!r} is there already")
            if etag is not None and (there is None or str(there[1]) != etag):
                raise ConflictError(f"operation {name!r} is no longer at version {etag}")
            self._version += 1
            self._documents[name] = (data, self._version)
            return str(self._version)

    def list(self) -> list[str]:
        with self._lock:
            return list(self._documents)

    def delete(self, name: str) -> None:
        with self._lock:
            self._documents.pop(name, None)


@dataclass(frozen=True)
class Record:
    """
    One operation as it is stored. Messages are kept as serialised `google.protobuf.Any` or `google.rpc.Status`.

    Attributes:
        owner: Manager that works on it; empty while none does, and always for shared kinds.
        beat: Grows with every sign of life of the owner.
        claims: How often a manager has taken it up.
        failures: Retryable errors in a row.
        request_id: Id of the request that asked for it, for logs.
    """

    kind: str
    request: bytes
    metadata: bytes
    create_s: float
    request_id: str = ""
    owner: str = ""
    beat: int = 0
    claims: int = 0
    failures: int = 0
    cancel_requested: bool = False
    done: bool = False
    response: bytes = b""
    error: bytes = b""
    update_s: float = 0.0

    def encode(self) -> bytes:
        document = {
            key: {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value
            for key, value in asdict(self).items()
        }
        return json.dumps(document, sort_keys=True, indent=1).encode()

    @classmethod
    def decode(cls, name: str, data: bytes) -> "Record":
        """
        Read a record; fields of a later version are passed over.

        Raises:
            DataLossError: The document is no record.
        """
        try:
            document = json.loads(data)
            values: dict[str, Any] = {
                key: base64.b64decode(value["base64"], validate=True) if isinstance(value, dict) else value
                for key, value in document.items()
                if key in cls.__dataclass_fields__
            }
            return cls(**values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataLossError(f"the stored state of {name} cannot be read ({error}); delete the operation") from None

    def to_operation(self, name: str) -> operations_pb2.Operation:
        operation = operations_pb2.Operation(name=name, done=self.done, metadata=any_pb2.Any.FromString(self.metadata))
        if self.done and self.error:
            operation.error.CopyFrom(status_pb2.Status.FromString(self.error))
        elif self.done:
            operation.response.CopyFrom(any_pb2.Any.FromString(self.response))
        return operation


def read_record(store: OperationStore, name: str) -> tuple[Record, str]:
    """Read a record and its version. NotFoundError, DataLossError."""
    data, etag = store.get(name)
    return Record.decode(name, data), etag


def change_record(store: OperationStore, name: str, change: Callable[[Record], Record | None]) -> Record:
    """
    Read, change and write back, again for as long as others write in between.

    Args:
        change: Gives the new record, or None to leave it; called again after a lost race.

    Returns:
        The record as it is stored now.
    """
    for attempt in range(_MAX_WRITE_ATTEMPTS):
        record, etag = read_record(store, name)
        changed = change(record)
        if changed is None or changed == record:
            return record
        changed = replace(changed, update_s=time.time())
        try:
            store.put(name, changed.encode(), etag=etag, create=False)
        except (ConflictError, AlreadyExistsError):
            time.sleep(min(0.2, 0.002 * 2**attempt))
            continue
        return changed
    raise InternalError(f"{name} was written by others {_MAX_WRITE_ATTEMPTS} times in a row; ask again")
