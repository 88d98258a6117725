"""Files of a transcoder that lie in the bucket, as `weft_clt.formats` reads them."""

from collections.abc import Mapping

from weft_clt.formats.files import MAX_FILES
from weft_common.errors import DataLossError, InvalidArgumentError
from weft_store import ObjectStore

__all__ = ["BucketFiles"]


class BucketFiles:
    """
    The objects below a prefix.

    Args:
        store: The bucket.
        prefix: A folder, with or without its slash.
    """

    def __init__(self, store: ObjectStore, prefix: str) -> None:
        self._store = store
        self._folder = prefix.strip("/") + "/"
        self._sizes: dict[str, int] | None = None

    @property
    def where(self) -> str:
        """The prefix, with a slash."""
        return self._folder

    def sizes(self) -> Mapping[str, int]:
        """List the prefix, once. InvalidArgumentError where it is none, or holds too much."""
        if self._sizes is None:
            found: dict[str, int] = {}
            for info in self._store.list(self._folder):
                found[info.key[len(self._folder) :]] = info.size_bytes
                if len(found) > MAX_FILES:
                    raise InvalidArgumentError(
                        f"{self._folder} holds more than {MAX_FILES} objects: give the prefix of one transcoder.",
                        field="prefix",
                    )
            self._sizes = found
        return self._sizes

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Read exactly so many bytes of an object."""
        if length == 0:
            return b""
        data = self._store.get(self._folder + name, offset=offset, length=length)
        if len(data) != length:
            raise DataLossError(f"{self._folder}{name} ends at byte {offset + len(data)}: copy it again.")
        return data
