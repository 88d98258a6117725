"""Which bucket an embedded run keeps its things in: a folder of its own, or one that the user names."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from weft_common.errors import InvalidArgumentError

__all__ = ["ACCESS_KEY_VARIABLE", "SECRET_KEY_VARIABLE", "Bucket"]

ACCESS_KEY_VARIABLE = "WEFT_BUCKET_ACCESS_KEY"
SECRET_KEY_VARIABLE = "WEFT_BUCKET_SECRET_KEY"  # noqa: S105  the name of a variable


@dataclass(frozen=True)
class Bucket:
    """
    A bucket and the keys to it.

    Args:
        url: As the services take it; never with keys in it.
        access_key: Of an S3 bucket; None goes without.
        secret_key: Goes with the access key.
    """

    url: str
    access_key: str | None = field(default=None, repr=False)
    secret_key: str | None = field(default=None, repr=False)

    @classmethod
    def named(cls, url: str, environment: Mapping[str, str]) -> "Bucket":
        """
        Take a bucket by its URL; an S3 bucket's keys come from the environment, so that no list of processes has them.

        Raises:
            InvalidArgumentError: It is no bucket that five processes can share, or one key is missing.

        >>> Bucket.named("file:///tmp/weft", {}).settings()
        {'BUCKET_URL': 'file:///tmp/weft'}
        """
        scheme = urlsplit(url).scheme
        if scheme not in ("file", "s3+http", "s3+https"):
            # Whatever stands before an @ may be a password.
            raise InvalidArgumentError(
                f"--bucket is {url.rpartition('@')[2][:120]!r}: give s3+https://host[:port]/bucket[/prefix], "
                "s3+http://... or file:///absolute/folder.",
                field="bucket",
            )
        if scheme == "file":
            return cls(url)
        access_key, secret_key = environment.get(ACCESS_KEY_VARIABLE), environment.get(SECRET_KEY_VARIABLE)
        if bool(access_key) != bool(secret_key):
            there, missing = ACCESS_KEY_VARIABLE, SECRET_KEY_VARIABLE
            if secret_key:
                there, missing = missing, there
            raise InvalidArgumentError(
                f"{there} is set and {missing} is not: set both, or neither for a bucket that needs no keys.",
                field="bucket",
            )
        return cls(url, access_key or None, secret_key or None)

    def settings(self) -> dict[str, str]:
        """Return what a service is told about it, without the service's own prefix."""
        keys = {"BUCKET_ACCESS_KEY": self.access_key, "BUCKET_SECRET_KEY": self.secret_key}
        return {"BUCKET_URL": self.url} | {name: value for name, value in keys.items() if value}

    def check(self) -> None:
        """
        Ask the bucket for its first names, so that a wrong one is known before anything starts.

        Raises:
            WeftError: It cannot be reached, is not there, or refuses the keys; the message says what to do.
        """
        # Only who runs the services has what opening a bucket needs; a client on its own does not.
        from weft_store import open_store

        next(open_store(self.url, self.access_key, self.secret_key).list_folders(""), None)
