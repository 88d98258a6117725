"""A bucket whose requests are timed and counted by outcome, for Prometheus."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from prometheus_client import Histogram

from weft_common.errors import Code, WeftError
from weft_common.metrics import REGISTRY
from weft_store.port import ObjectInfo, ObjectStore

__all__ = ["S3_REQUEST_SECONDS", "MeteredObjectStore"]

T = TypeVar("T")

S3_REQUEST_SECONDS = Histogram(
    "weft_s3_request_seconds",
    "Seconds of a request to the bucket, retries included, by gRPC code of its outcome; folders as buckets too.",
    ("op", "code"),
    buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60),
    registry=REGISTRY,
)
_OPS = ("delete", "get", "get_file", "info", "list", "put", "put_file")
for _op in _OPS:
    S3_REQUEST_SECONDS.labels(_op, Code.OK.name)


class MeteredObjectStore:
    """
    Passes every call on and takes its time. Presigning asks nobody, so it is not counted.

    Args:
        store: The bucket.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        return _timed("get", lambda: self._store.get(key, offset=offset, length=length))

    def get_with_info(self, key: str) -> tuple[bytes, ObjectInfo]:
        return _timed("get", lambda: self._store.get_with_info(key))

    def info(self, key: str) -> ObjectInfo:
        return _timed("info", lambda: self._store.info(key))

    def put(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> ObjectInfo:
        return _timed("put", lambda: self._store.put(key, data, if_absent=if_absent, if_match=if_match))

    def put_file(self, key: str, path: Path) -> ObjectInfo:
        return _timed("put_file", lambda: self._store.put_file(key, path))

    def get_to_file(self, key: str, path: Path) -> ObjectInfo:
        return _timed("get_file", lambda: self._store.get_to_file(key, path))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return _timed_walk("list", self._store.list(prefix))

    def list_folders(self, prefix: str) -> Iterator[str]:
        return _timed_walk("list", self._store.list_folders(prefix))

    def delete(self, key: str) -> None:
        _timed("delete", lambda: self._store.delete(key))

    def presign_get(self, key: str, expires_s: int) -> str:
        return self._store.presign_get(key, expires_s)

    def presign_put(self, key: str, expires_s: int) -> str:
        return self._store.presign_put(key, expires_s)


def _timed(op: str, call: Callable[[], T]) -> T:
    begun = time.perf_counter()
    code = Code.UNKNOWN
    try:
        result = call()
        code = Code.OK
        return result
    except WeftError as error:
        code = error.code
        raise
    finally:
        S3_REQUEST_SECONDS.labels(op, code.name).observe(time.perf_counter() - begun)


def _timed_walk(op: str, found: Iterator[T]) -> Iterator[T]:
    """Walk a listing, counting only the time that the bucket takes, not its reader's."""
    seconds, code = 0.0, Code.OK
    try:
        while True:
            begun = time.perf_counter()
            try:
                entry = next(found)
            except StopIteration:
                return
            except WeftError as error:
                code = error.code
                raise
            except Exception:
                code = Code.UNKNOWN
                raise
            finally:
                seconds += time.perf_counter() - begun
            yield entry
    finally:
        S3_REQUEST_SECONDS.labels(op, code.name).observe(seconds)
