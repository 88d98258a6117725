"""
How an export begins, becomes whole, is read and goes: what lies in the bucket beside its files.

A manifest is small whatever the export is; files are named in a document of their own, which is read where they are
asked for.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from weft_attribution.core.feature_export.settings import ExportKeys, ExportRequest
from weft_common.errors import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    NotFoundError,
    UnavailableError,
)
from weft_store.documents import create_json, encode_json, keep_json, read_json
from weft_store.port import ObjectStore

__all__ = [
    "Source", "begin_export", "check_not_going", "check_same", "delete_export", "finish_export", "read_begun",
    "read_export", "read_files",
]  # fmt: skip

Json = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """Which index of which transcoder an export is of, beside their names: both may be replaced."""

    index_create_s: float
    transcoder_mark: str

    @classmethod
    def of(cls, index: Mapping[str, Any]) -> "Source":
        """Of the manifest of an index."""
        return cls(float(index["create_s"]), str(index["transcoder_mark"]))


def check_not_going(store: ObjectStore, keys: ExportKeys) -> None:
    """Refuse an id whose deletion was begun. FailedPreconditionError."""
    try:
        store.info(keys.deleting)
    except NotFoundError:
        return
    raise FailedPreconditionError(
        f"transcoders/{keys.transcoder}/exports/{keys.export_id} is being deleted; delete it again to have that "
        "ended, or give this one an id of its own"
    )


def read_begun(store: ObjectStore, keys: ExportKeys) -> tuple[ExportRequest, Source] | None:
    """How an export was asked for, and of what; None where nobody asked. DataLossError where that is damaged."""
    try:
        document, _ = read_json(store, keys.request)
        source = Source(float(document["index_create_s"]), str(document["transcoder_mark"]))
        return ExportRequest.from_json(document["request"]), source
    except NotFoundError:
        return None
    except (KeyError, TypeError, ValueError) as error:
        raise DataLossError(f"{keys.request} is damaged ({error!r}); delete the export") from error


def begin_export(store: ObjectStore, request: ExportRequest, source: Source) -> Json:
    """
    Write down how an export is asked for, and of what; the same again gives what was written first.

    Raises:
        AlreadyExistsError: The id stands for another export, or its index or transcoder was replaced since.
        FailedPreconditionError: It is being deleted.
    """
    check_not_going(store, request.keys)
    document: Json = {
        "create_s": time.time(),
        "request": request.to_json(),
        "index_create_s": source.index_create_s,
        "transcoder_mark": source.transcoder_mark,
    }
    try:
        create_json(store, request.keys.request, document)
    except AlreadyExistsError:
        check_same(read_begun(store, request.keys), request, source)
        document, _ = read_json(store, request.keys.request)
    return document


def check_same(begun: tuple[ExportRequest, Source] | None, request: ExportRequest, source: Source) -> None:
    """Refuse to go on with what was begun otherwise. AlreadyExistsError."""
    if begun is None or begun == (request, source):
        return
    why = "was asked for otherwise" if begun[0] != request else "was begun of an index that was replaced since"
    raise AlreadyExistsError(
        f"transcoders/{request.transcoder}/exports/{request.export_id} {why}; give this one an id of its own, or "
        "delete that one",
        field="export_id",
    )


def finish_export(
    store: ObjectStore, request: ExportRequest, begun: Json, num_features: int, paths: Iterable[str]
) -> Json:
    """
    Name the files that were written, which makes the export whole.

    Raises:
        UnavailableError: One is not there; the same work again writes it.
    """
    keys = request.keys
    there = {info.key[len(keys.files) :]: info.size_bytes for info in store.list(keys.files)}
    wanted = sorted(set(paths))
    missing = [path for path in wanted if path not in there]
    if missing:
        raise UnavailableError(
            f"{len(missing)} of {len(wanted)} files of transcoders/{request.transcoder}/exports/{request.export_id} "
            f"went away while it was made, such as {missing[0]}; ask for it again"
        )
    store.put(keys.file_list, encode_json({"files": [[path, there[path]] for path in wanted]}))
    manifest = {
        **begun,
        "num_features": num_features,
        "num_files": len(wanted),
        "size_bytes": sum(there[path] for path in wanted),
    }
    return keep_json(store, keys.manifest, manifest)


def read_export(store: ObjectStore, keys: ExportKeys) -> Json:
    """The manifest of a whole export. NotFoundError; DataLossError where it is damaged."""
    try:
        document, _ = read_json(store, keys.manifest)
    except NotFoundError:
        raise NotFoundError(
            f"transcoders/{keys.transcoder}/exports/{keys.export_id} is not there, or not whole yet; "
            "ListFeatureExports shows those that there are"
        ) from None
    try:
        ExportRequest.from_json(document["request"])
        float(document["create_s"])
        for name in ("num_features", "num_files", "size_bytes"):
            int(document[name])
    except (KeyError, TypeError, ValueError) as error:
        raise DataLossError(f"{keys.manifest} is damaged ({error!r}); delete the export and make it anew") from error
    return document


def read_files(store: ObjectStore, keys: ExportKeys) -> list[tuple[str, int]]:
    """Path and bytes of each file of a whole export, by path. DataLossError where the list is damaged or gone."""
    try:
        document, _ = read_json(store, keys.file_list)
        return [(str(path), int(size)) for path, size in document["files"]]
    except (NotFoundError, KeyError, TypeError, ValueError) as error:
        raise DataLossError(f"{keys.file_list} is damaged ({error!r}); delete the export and make it anew") from error


def delete_export(store: ObjectStore, keys: ExportKeys) -> None:
    """Delete an export, whole or not. NotFoundError: there is nothing of it."""
    if next(iter(store.list(keys.prefix)), None) is None:
        raise NotFoundError(
            f"transcoders/{keys.transcoder}/exports/{keys.export_id} is not there, so nothing was deleted"
        )
    # Without its manifest nobody reads it, and with the mark nobody goes on with it: a crash leaves no half export.
    store.delete(keys.manifest)
    store.put(keys.deleting, encode_json({"delete_s": time.time()}))
    for info in list(store.list(keys.prefix)):
        if info.key not in (keys.request, keys.deleting):
            store.delete(info.key)
    store.delete(keys.request)
    store.delete(keys.deleting)
