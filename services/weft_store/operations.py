"""Where the state of long-running operations lies: one document each under `operations/{service}/`."""

from weft_common.errors import AlreadyExistsError, ConflictError, InvalidArgumentError
from weft_store.documents import list_ids
from weft_store.port import ObjectStore


class ObjectOperationStore:
    """
    A service's operations in a bucket; the `OperationStore` of `weft_common.operations`.

    The operation `operations/{service}-{id}` lies under the key `operations/{service}/{id}.json`.
    """

    def __init__(self, store: ObjectStore, service: str) -> None:
        self._store = store
        self._folder = f"operations/{service}/"
        self._names = f"operations/{service}-"

    def get(self, name: str) -> tuple[bytes, str]:
        """Read an operation and its version. NotFoundError."""
        data, info = self._store.get_with_info(self._key(name))
        return data, info.etag

    def put(self, name: str, data: bytes, *, etag: str | None, create: bool) -> str:
        """Write an operation: only a new one (`create`), only over `etag`, or in any case. ConflictError."""
        try:
            return self._store.put(self._key(name), data, if_absent=create, if_match=etag).etag
        except AlreadyExistsError as error:
            raise ConflictError(f"operation {name!r} is already there.") from error

    def list(self) -> list[str]:
        """Name all operations of this service."""
        return [self._names + operation for operation in list_ids(self._store, self._folder, ".json")]

    def delete(self, name: str) -> None:
        """Forget an operation; one that is not there is no error."""
        self._store.delete(self._key(name))

    def _key(self, name: str) -> str:
        if not name.startswith(self._names) or "/" in name[len(self._names) :]:
            raise InvalidArgumentError(
                f"{name!r} is not an operation of this service: expected {self._names}ID.", field="name"
            )
        return f"{self._folder}{name[len(self._names) :]}.json"
