"""
A bucket on S3 or MinIO, through the `minio` client.

The client's `put_object` takes no conditions, so a single-request put goes through a presigned URL, with `If-Match` or
`If-None-Match` as headers; all else uses the client. Connections are made lazily in each process, because a client
that was forked shares its sockets with its parent.
"""

import hashlib
import os
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TypeVar

import urllib3
from minio import Minio
from minio.error import InvalidResponseError, S3Error, ServerError
from urllib3.exceptions import HTTPError, MaxRetryError, SSLError

from weft_common.errors import (
    AlreadyExistsError,
    ConflictError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    StorageFullError,
    UnauthenticatedError,
    UnavailableError,
    WeftError,
)
from weft_store.adapters.local_files import storage_error, write_file_atomically
from weft_store.port import ObjectInfo, check_condition, check_key, check_prefix, check_range

_T = TypeVar("_T")

_CONNECT_TIMEOUT_S = 5.0
_READ_TIMEOUT_S = 60.0
_ATTEMPTS = 4
_BACKOFF_S = 0.2
_PART_BYTES = 16 << 20
# S3's limit for one request; larger objects go as files, in parts.
_MAX_PUT_BYTES = 5 << 30
_MAX_PRESIGN_S = 7 * 86400

_REFUSALS: dict[str, type[WeftError]] = {
    "AccessDenied": PermissionDeniedError,
    "AllAccessDisabled": PermissionDeniedError,
    "ExpiredToken": UnauthenticatedError,
    "InvalidAccessKeyId": UnauthenticatedError,
    "SignatureDoesNotMatch": UnauthenticatedError,
    "RequestTimeTooSkewed": UnauthenticatedError,
    "NoSuchBucket": FailedPreconditionError,
    "XMinioStorageFull": StorageFullError,
    "QuotaExceeded": StorageFullError,
    "XMinioAdminBucketQuotaExceeded": StorageFullError,
    "SlowDown": ResourceExhaustedError,
    "EntityTooLarge": InvalidArgumentError,
}


@dataclass(frozen=True, slots=True)
class _Connection:
    pid: int
    client: Minio
    pool: urllib3.PoolManager


class MinioObjectStore:
    """
    Objects of one bucket, below an optional prefix.

    Args:
        endpoint: `host` or `host:port`.
        bucket: Must exist.
        prefix: Folder that every key lies in, without slashes at its ends.
        secure: TLS.
        access_key: None for anonymous requests.
        secret_key: Goes with the access key.
        region: None asks the server.
        ca: PEM file of the authority that the server's certificate comes from; None trusts the system's own.

    Raises:
        InvalidArgumentError: The file of the authority holds no certificate.
    """

    def __init__(
        self,
        endpoint: str,
        bucket: str,
        *,
        prefix: str = "",
        secure: bool = True,
        access_key: str | None = None,
        secret_key: str | None = None,
        region: str | None = None,
        ca: Path | None = None,
    ) -> None:
        if ca is not None:
            _check_authority(ca)
        self._endpoint = endpoint
        self._bucket = bucket
        self._prefix = check_key(prefix) + "/" if prefix else ""
        self._secure = secure
        self._access_key = access_key
        self._secret_key = secret_key
        self._region = region
        self._ca = ca
        self._lock = threading.Lock()
        self._connection: _Connection | None = None

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_connection")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
        self._connection = None

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        check_range(offset, length)
        if length == 0:
            self.info(key)
            return b""
        headers = {}
        if offset or length is not None:
            last = "" if length is None else str(offset + length - 1)
            headers["Range"] = f"bytes={offset}-{last}"
        return self._read(key, headers)[0]

    def get_with_info(self, key: str) -> tuple[bytes, ObjectInfo]:
        data, headers = self._read(key, {})
        modified_s = parsedate_to_datetime(headers["Last-Modified"]).timestamp()
        return data, ObjectInfo(key, len(data), headers["ETag"].strip('"'), modified_s)

    def info(self, key: str) -> ObjectInfo:
        with self._errors(key):
            found = self._client().stat_object(self._bucket, self._name(key))
        modified_s = found.last_modified.timestamp() if found.last_modified else 0.0
        return ObjectInfo(key, int(found.size or 0), str(found.etag), modified_s)

    def put(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> ObjectInfo:
        check_condition(if_absent=if_absent, if_match=if_match)
        name = self._name(key)
        if len(data) > _MAX_PUT_BYTES:
            raise InvalidArgumentError(
                f"object {key!r} of {len(data)} bytes is too large for one request: write it with put_file.",
                field="data",
            )
        md5 = hashlib.md5(data, usedforsecurity=False)
        headers = {"Content-Type": "application/octet-stream", "Content-MD5": b64encode(md5.digest()).decode()}
        if if_absent:
            headers["If-None-Match"] = "*"
        if if_match is not None:
            headers["If-Match"] = f'"{if_match}"'
        conditional = if_absent or if_match is not None
        attempt = 0
        while True:
            with self._errors(key):
                url = self._client().get_presigned_url("PUT", self._bucket, name, expires=timedelta(hours=1))
                response = self._pool().request("PUT", url, body=data, headers=headers)
            if response.status == 200:
                return ObjectInfo(key, len(data), response.headers.get("ETag", "").strip('"'), time.time())
            attempt += 1
            # 409: another conditional write of this key was under way; neither won nor lost yet.
            undecided = _error_code(response) in ("ConditionalRequestConflict", "OperationAborted")
            if not (conditional and undecided and attempt < _ATTEMPTS):
                break
            time.sleep(_BACKOFF_S * attempt)
        if response.status == 412 or (response.status == 404 and if_match is not None and _is_missing(response)):
            return self._lost_or_won(key, md5.hexdigest(), response, if_absent=if_absent)
        if undecided:
            raise ConflictError(f"object {key!r} is being written by others: try again.")
        raise self._refusal(_error_code(response), key, f"HTTP status {response.status}")

    def put_file(self, key: str, path: Path) -> ObjectInfo:
        name = self._name(key)
        with self._errors(key):
            written = self._client().fput_object(self._bucket, name, str(path), part_size=_PART_BYTES)
        return ObjectInfo(key, path.stat().st_size, str(written.etag), time.time())

    def get_to_file(self, key: str, path: Path) -> ObjectInfo:
        info = self.info(key)
        with write_file_atomically(path) as file:
            for start in range(0, info.size_bytes, _PART_BYTES):
                headers = {"Range": f"bytes={start}-{start + _PART_BYTES - 1}", "If-Match": f'"{info.etag}"'}
                file.write(self._read(key, headers)[0])
        return info

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        return self._list(prefix)

    def list_folders(self, prefix: str) -> Iterator[str]:
        check_prefix(prefix, folder=True)
        with self._errors(prefix):
            for found in self._client().list_objects(self._bucket, self._prefix + prefix, recursive=False):
                if found.is_dir:
                    yield str(found.object_name)[len(self._prefix) + len(prefix) :].rstrip("/")

    def delete(self, key: str) -> None:
        with self._errors(key):
            self._client().remove_object(self._bucket, self._name(key))

    def presign_get(self, key: str, expires_s: int) -> str:
        return self._presign("GET", key, expires_s)

    def presign_put(self, key: str, expires_s: int) -> str:
        return self._presign("PUT", key, expires_s)

    def _list(self, prefix: str) -> Iterator[ObjectInfo]:
        with self._errors(prefix):
            for found in self._client().list_objects(self._bucket, self._prefix + prefix, recursive=True):
                modified_s = found.last_modified.timestamp() if found.last_modified else 0.0
                key = str(found.object_name)[len(self._prefix) :]
                yield ObjectInfo(key, int(found.size or 0), "", modified_s)

    def _presign(self, method: str, key: str, expires_s: int) -> str:
        name = self._name(key)
        if not 1 <= expires_s <= _MAX_PRESIGN_S:
            raise InvalidArgumentError(
                f"a URL cannot last {expires_s} s: expected 1 to {_MAX_PRESIGN_S}.", field="expires_s"
            )
        with self._errors(key):
            url: str = self._client().get_presigned_url(
                method, self._bucket, name, expires=timedelta(seconds=expires_s)
            )
        return url

    def _name(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _client(self) -> Minio:
        return self._connected().client

    def _pool(self) -> urllib3.PoolManager:
        return self._connected().pool

    def _connected(self) -> _Connection:
        with self._lock:
            if self._connection is None or self._connection.pid != os.getpid():
                self._connection = self._connect()
            return self._connection

    def _connect(self) -> _Connection:
        pool = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=_CONNECT_TIMEOUT_S, read=_READ_TIMEOUT_S),
            maxsize=16,
            ca_certs=str(self._ca) if self._ca else None,
            retries=urllib3.Retry(
                total=_ATTEMPTS,
                backoff_factor=_BACKOFF_S,
                status_forcelist=(500, 502, 503, 504),
                allowed_methods=None,
                raise_on_status=False,
            ),
        )
        client = Minio(
            self._endpoint,
            self._access_key,
            self._secret_key,
            secure=self._secure,
            region=self._region,
            http_client=pool,
        )
        return _Connection(os.getpid(), client, pool)

    def _read(self, key: str, headers: dict[str, str]) -> tuple[bytes, dict[str, str]]:
        """Read an object or a range, again from its start where the connection breaks in the middle."""
        name = self._name(key)

        def read() -> tuple[bytes, dict[str, str]]:
            response = self._client().get_object(self._bucket, name, request_headers=dict(headers))
            try:
                return response.read(), dict(response.headers)
            finally:
                response.close()
                response.release_conn()

        try:
            with self._errors(key):
                return _retried(read)
        except S3RangeError:
            return b"", {}

    def _lost_or_won(self, key: str, md5: str, response: urllib3.BaseHTTPResponse, *, if_absent: bool) -> ObjectInfo:
        """
        Tell a lost race from our own success whose answer was lost.

        Where the request was sent more than once and what is there are exactly our bytes, an earlier one succeeded.
        """
        if response.retries is not None and response.retries.history:
            found = self.info(key)
            if found.etag == md5:
                return found
        if if_absent:
            raise AlreadyExistsError(f"object {key!r} is already there.")
        raise ConflictError(f"object {key!r} has changed since it was read: read it again and retry.")

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except S3Error as error:
            if error.code in ("NoSuchKey", "NoSuchObject", "XMinioInvalidObjectName"):
                raise NotFoundError(f"there is no object {key!r} in the bucket.") from error
            if error.code == "InvalidRange":
                raise S3RangeError(key) from error
            raise self._refusal(str(error.code), key, str(error.message)) from error
        except (HTTPError, InvalidResponseError, ServerError) as error:
            if isinstance(error, MaxRetryError) and isinstance(error.reason, SSLError):
                raise UnavailableError(
                    f"bucket {self._bucket!r} at {self._endpoint} has a certificate that is not trusted "
                    f"({error.reason}): set BUCKET_CA, after the service's prefix, to a PEM file of its authority, or "
                    "have this machine trust that."
                ) from error
            raise UnavailableError(
                f"bucket {self._bucket!r} at {self._endpoint} does not answer ({type(error).__name__}): check that it "
                "runs and that this machine reaches it."
            ) from error
        except OSError as error:
            raise storage_error(error, f"the file for object {key!r}") from error

    def _refusal(self, code: str, key: str, why: str) -> WeftError:
        kind = _REFUSALS.get(code, UnavailableError)
        advice = {
            PermissionDeniedError: "give these credentials the right to read, write and list it",
            UnauthenticatedError: "check access key, secret key and this machine's clock",
            StorageFullError: "no space is left: free some",
            ResourceExhaustedError: "try again later",
        }.get(kind, "see the server's own log")
        if code == "NoSuchBucket":
            advice = "create the bucket"
        return kind(f"bucket {self._bucket!r} at {self._endpoint} refused {key!r}: {code}, {why}; {advice}.")


class S3RangeError(Exception):
    """The range starts at or after the object's end; never leaves this module."""


def _check_authority(path: Path) -> None:
    try:
        ssl.create_default_context(cafile=path)
    except (ssl.SSLError, OSError) as error:
        raise InvalidArgumentError(
            f"{path} cannot be used as the bucket's authority ({error}): give a PEM file with its certificate.",
            field="bucket_ca",
        ) from error


def _retried(call: Callable[[], _T]) -> _T:
    for attempt in range(1, _ATTEMPTS):
        try:
            return call()
        except MaxRetryError:
            raise  # the pool has tried often enough
        except HTTPError:
            time.sleep(_BACKOFF_S * attempt)
    return call()


def _error_code(response: urllib3.BaseHTTPResponse) -> str:
    try:
        return str(S3Error.fromxml(response).code)
    except (SyntaxError, ValueError):
        return f"HTTP {response.status}"


def _is_missing(response: urllib3.BaseHTTPResponse) -> bool:
    return _error_code(response) == "NoSuchKey"
