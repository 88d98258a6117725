"""
JSON documents in a bucket: read, created once, changed by compare-and-swap.

Keys are sorted and floats are written shortest-exact, so that equal documents are equal bytes.
"""

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from weft_common.errors import AlreadyExistsError, ConflictError, DataLossError, NotFoundError
from weft_store.port import ObjectInfo, ObjectStore

Document = dict[str, Any]


def encode_json(document: Mapping[str, Any]) -> bytes:
    """Write a document as bytes: sorted keys, no NaN, a newline at the end."""
    return json.dumps(document, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=1).encode() + b"\n"


def read_json(store: ObjectStore, key: str) -> tuple[Document, str]:
    """Read a document and its version. NotFoundError; DataLossError where it is not a JSON object."""
    data, info = store.get_with_info(key)
    return decode_json(key, data), info.etag


def create_json(store: ObjectStore, key: str, document: Mapping[str, Any]) -> ObjectInfo:
    """Write a document that is not there yet. AlreadyExistsError."""
    return store.put(key, encode_json(document), if_absent=True)


def keep_json(store: ObjectStore, key: str, document: Document) -> Document:
    """Write a document unless there is one, and return the one that is there. NotFoundError: deleted meanwhile."""
    try:
        create_json(store, key, document)
    except AlreadyExistsError:
        return read_json(store, key)[0]
    return document


def update_json(store: ObjectStore, key: str, change: Callable[[Document], Document], attempts: int = 20) -> Document:
    """
    Change a document by compare-and-swap and return what was written.

    Args:
        store: The bucket.
        key: A document that is there.
        change: Given the present document, makes the new one; called again whenever another writer was faster. What it
            raises ends the update. Returning an equal document writes nothing.
        attempts: How often to try before giving up.

    Raises:
        NotFoundError: No such document.
        ConflictError: Other writers won every attempt.
    """
    for attempt in range(attempts):
        data, info = store.get_with_info(key)
        changed = change(decode_json(key, data))
        encoded = encode_json(changed)
        if encoded == data:
            return changed
        try:
            store.put(key, encoded, if_match=info.etag)
        except ConflictError:
            # Writers that collide come back at different times.
            time.sleep(random.uniform(0, min(0.5, 0.005 * 2**attempt)))  # noqa: S311
            continue
        return changed
    raise ConflictError(f"document {key!r} was changed by others {attempts} times in a row: try again later.")


def list_ids(store: ObjectStore, prefix: str, suffix: str) -> Iterator[str]:
    """
    Name what stands between a prefix and a suffix, in order: `list_ids(store, "runs/", "/run.json")` gives run ids.

    Where the suffix starts with a slash, only the folders right below the prefix are looked at, not all their objects.
    """
    if suffix.startswith("/"):
        for name in store.list_folders(prefix):
            try:
                store.info(f"{prefix}{name}{suffix}")
            except NotFoundError:
                continue
            yield name
        return
    for info in store.list(prefix):
        name = info.key[len(prefix) : -len(suffix) or None]
        if name and info.key.endswith(suffix) and "/" not in name:
            yield name


def decode_json(key: str, data: bytes) -> Document:
    """The document that an object's bytes are. DataLossError where they are no JSON object."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataLossError(f"object {key!r} is not JSON ({error}): restore it from a backup or delete it.") from error
    if not isinstance(document, dict):
        raise DataLossError(f"object {key!r} holds {type(document).__name__}, expected a JSON object.")
    return document
