"""From a bucket's URL to its adapter."""

from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import SecretStr

from weft_common.errors import InvalidArgumentError
from weft_store.metered import MeteredObjectStore
from weft_store.port import ObjectStore

_FORMS = (
    "file:///absolute/folder, memory://, s3+http://host:port/bucket[/prefix] or s3+https://host[:port]/bucket[/prefix]"
)


class BucketPlace(Protocol):
    """Where settings say that the bucket is, and with what it is opened; see `open_store`."""

    @property
    def bucket_url(self) -> str: ...

    @property
    def bucket_access_key(self) -> SecretStr | None: ...

    @property
    def bucket_secret_key(self) -> SecretStr | None: ...

    @property
    def bucket_ca(self) -> Path | None: ...


def open_bucket(settings: BucketPlace) -> ObjectStore:
    """Open the bucket that a process's settings name. InvalidArgumentError."""
    secrets = (settings.bucket_access_key, settings.bucket_secret_key)
    access_key, secret_key = (secret.get_secret_value() if secret else None for secret in secrets)
    return open_store(settings.bucket_url, access_key, secret_key, ca=settings.bucket_ca)


def open_store(
    url: str, access_key: str | None = None, secret_key: str | None = None, *, ca: Path | None = None
) -> ObjectStore:
    """
    Open the bucket that a URL names; its requests are metered.

    Args:
        url: `file:///absolute/folder`, `memory://` (a new, empty one), `s3+http://` or `s3+https://` with host, bucket
            and, if wanted, a prefix before every key and `?region=NAME`.
        access_key: For S3; without keys, requests are anonymous.
        secret_key: Goes with the access key.
        ca: PEM file of the authority to trust, for `s3+https://`; the system's own where None.

    Raises:
        InvalidArgumentError: The URL is none of these, one key is missing, or the file holds no certificate.
    """
    return MeteredObjectStore(_open(url, access_key, secret_key, ca))


def _open(url: str, access_key: str | None, secret_key: str | None, ca: Path | None) -> ObjectStore:
    parts = urlsplit(url)
    if parts.scheme == "file":
        folder = Path(unquote(parts.path))
        if parts.netloc not in ("", "localhost") or not folder.is_absolute():
            raise _refusal(url, "a file URL has three slashes and an absolute path")
        from weft_store.adapters.file import FileObjectStore

        return FileObjectStore(folder)
    if parts.scheme == "memory":
        from weft_store.adapters.memory import MemoryObjectStore

        return MemoryObjectStore()
    if parts.scheme in ("s3+http", "s3+https"):
        bucket, _, prefix = parts.path.strip("/").partition("/")
        if not parts.netloc or not bucket or parts.username is not None:
            raise _refusal(url, "an S3 URL has a host and a bucket, and no credentials")
        if (access_key is None) != (secret_key is None):
            raise InvalidArgumentError("only one of access key and secret key is set: set both.", field="bucket_url")
        from weft_store.adapters.minio import MinioObjectStore

        return MinioObjectStore(
            parts.netloc,
            bucket,
            prefix=prefix,
            secure=parts.scheme == "s3+https",
            access_key=access_key,
            secret_key=secret_key,
            region=parse_qs(parts.query).get("region", [None])[0],
            ca=ca,
        )
    raise _refusal(url, "the scheme is unknown")


def _refusal(url: str, why: str) -> InvalidArgumentError:
    # Whatever stands before an @ may be a password.
    shown = url.rpartition("@")[2][:120]
    return InvalidArgumentError(f"{shown!r} is no bucket URL ({why}): expected {_FORMS}.", field="bucket_url")
