"""
Settings of a service: one frozen class a service, read once from the environment when it starts.

    class CacheSettings(ServiceSettings, BucketSettings):
        model_config = SettingsConfigDict(env_prefix="WEFT_CACHE_", frozen=True)

    settings = load_settings(CacheSettings)     # or a clear message and exit code 2
"""

import sys
from pathlib import Path
from typing import Literal, NoReturn, Self, TypedDict, TypeVar
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

__all__ = [
    "EXIT_BAD_SETTINGS",
    "BucketSettings",
    "ChannelTls",
    "PeerSettings",
    "ServiceSettings",
    "check_pem_file",
    "load_settings",
    "variable_name",
]

EXIT_BAD_SETTINGS = 2

MIB = 1 << 20


def check_pem_file(path: Path | None) -> Path | None:
    """Return the path of a file that can be read; for validators of settings."""
    if path is not None:
        try:
            path.read_bytes()
        except OSError as error:
            raise ValueError(f"cannot be read ({error.strerror}); give the path of a PEM file") from None
    return path


class ServiceSettings(BaseSettings):
    """What every weft service is told when it starts."""

    model_config = SettingsConfigDict(frozen=True, use_attribute_docstrings=True, extra="ignore")

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every one."""
    port: int = Field(default=0, ge=0, le=65535)
    """Port of gRPC; 0 takes a free one and logs it."""
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """Port of /metrics, /livez and /readyz (plain HTTP); 0 takes a free one and logs it."""
    token: SecretStr | None = None
    """Bearer token that every caller must send; health checks alone go without."""
    insecure_no_auth: bool = False
    """True serves callers without a token; for trials on a machine of one's own."""
    tls_cert: Path | None = None
    """PEM file with the server's certificate chain; turns TLS on, together with tls_key."""
    tls_key: Path | None = None
    """PEM file with the private key of tls_cert."""
    tls_client_ca: Path | None = None
    """PEM file with the authority that clients' certificates must come from; turns mutual TLS on."""
    log_level: Literal["debug", "info", "warning", "error", "critical"] = "info"
    """Least severe event that is logged."""
    log_format: Literal["json", "console"] = "json"
    """json for machines, console for people."""
    max_message_bytes: int = Field(default=8 * MIB, ge=64 << 10, le=1 << 30)
    """Largest message taken or sent."""
    max_inflight_bytes: int = Field(default=128 * MIB, ge=64 << 10)
    """Bytes of requests that may be worked on at once; more are refused for a moment."""
    max_concurrent_rpcs: int = Field(default=256, ge=1)
    """Calls that may be open at once; more are refused for a moment."""
    max_call_s: float = Field(default=600.0, gt=0)
    """Longest that a call with a single answer may take when its caller sets no deadline."""
    max_connection_age_s: int = Field(default=3600, ge=60)
    """Seconds after which a connection is renewed, so that callers spread over new replicas."""
    drain_s: float = Field(default=10.0, ge=0)
    """Seconds that open calls are given to end when the service is told to stop."""
    otlp_endpoint: str | None = None
    """Where traces are sent, as http://host:4317 or https://...; without one there are none."""

    @field_validator("token")
    @classmethod
    def _token_is_sendable(cls, token: SecretStr | None) -> SecretStr | None:
        if token is not None:
            text = token.get_secret_value()
            if not text or not text.isascii() or not text.isprintable() or " " in text:
                raise ValueError("a token is one or more visible ASCII characters without spaces")
        return token

    @field_validator("tls_cert", "tls_key", "tls_client_ca")
    @classmethod
    def _file_is_readable(cls, path: Path | None) -> Path | None:
        return check_pem_file(path)

    @field_validator("otlp_endpoint")
    @classmethod
    def _endpoint_is_a_url(cls, endpoint: str | None) -> str | None:
        if endpoint is not None and urlsplit(endpoint).scheme not in ("http", "https"):
            raise ValueError("give a URL such as http://collector:4317, or leave it unset for no traces")
        return endpoint

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.token is None and not self.insecure_no_auth:
            raise ValueError(
                f"no token: set {variable_name(type(self), 'token')} to a secret of your own, or "
                f"{variable_name(type(self), 'insecure_no_auth')}=true on a machine that nobody else reaches"
            )
        if self.token is not None and self.insecure_no_auth:
            raise ValueError(
                f"{variable_name(type(self), 'token')} and {variable_name(type(self), 'insecure_no_auth')}=true "
                "contradict each other; unset one"
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError(
                f"{variable_name(type(self), 'tls_cert')} and {variable_name(type(self), 'tls_key')} go together; "
                "set both or neither"
            )
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError(
                f"{variable_name(type(self), 'tls_client_ca')} asks for clients' certificates, which needs TLS; "
                f"set {variable_name(type(self), 'tls_cert')} and {variable_name(type(self), 'tls_key')} too"
            )
        if self.max_inflight_bytes < self.max_message_bytes:
            raise ValueError(
                f"{variable_name(type(self), 'max_inflight_bytes')} is {self.max_inflight_bytes}, less than one "
                f"message of {variable_name(type(self), 'max_message_bytes')}={self.max_message_bytes}; raise it"
            )
        return self


class BucketSettings(BaseSettings):
    """Where the bucket is; mixed into the settings of services that use it."""

    model_config = SettingsConfigDict(frozen=True, use_attribute_docstrings=True, extra="ignore")

    bucket_url: str
    """file:///absolute/path, memory://, s3+http://host:port/bucket/prefix or s3+https://..."""
    bucket_access_key: SecretStr | None = None
    """Access key of an s3 bucket."""
    bucket_secret_key: SecretStr | None = None
    """Secret key of an s3 bucket."""
    bucket_ca: Path | None = None
    """PEM file of the authority that the certificate of an s3+https bucket comes from; the system's own where unset."""

    @field_validator("bucket_ca")
    @classmethod
    def _authority_is_readable(cls, path: Path | None) -> Path | None:
        return check_pem_file(path)

    @model_validator(mode="after")
    def _bucket_is_complete(self) -> Self:
        url = urlsplit(self.bucket_url)
        variable = variable_name(type(self), "bucket_url")
        if url.scheme not in ("file", "memory", "s3+http", "s3+https"):
            raise ValueError(
                f"{variable} is {self.bucket_url!r}; give file:///absolute/path, memory://, "
                "s3+http://host:port/bucket or s3+https://host/bucket"
            )
        if url.scheme == "file" and (url.netloc or not url.path.startswith("/")):
            raise ValueError(f"{variable} is {self.bucket_url!r}; a file bucket is file:///absolute/path")
        if url.scheme.startswith("s3+"):
            if not url.hostname or not url.path.strip("/"):
                raise ValueError(f"{variable} is {self.bucket_url!r}; an s3 bucket is {url.scheme}://host:port/bucket")
            if url.username or url.password:
                raise ValueError(f"{variable} holds a key; move it to {variable_name(type(self), 'bucket_access_key')}")
        if (self.bucket_access_key is None) != (self.bucket_secret_key is None):
            raise ValueError(
                f"{variable_name(type(self), 'bucket_access_key')} and "
                f"{variable_name(type(self), 'bucket_secret_key')} go together; set both or neither"
            )
        if self.bucket_ca is not None and url.scheme != "s3+https":
            raise ValueError(
                f"{variable_name(type(self), 'bucket_ca')} is for a bucket with TLS, but {variable} is "
                f"{self.bucket_url!r}; give s3+https://host/bucket, or unset it"
            )
        return self


class ChannelTls(TypedDict):
    """The TLS arguments of `weft_common.client.channel` and `aio_channel`."""

    tls_ca: Path | None
    tls_cert: Path | None
    tls_key: Path | None


class PeerSettings(BaseSettings):
    """How the other services are called; mixed into the settings of services that call some."""

    model_config = SettingsConfigDict(frozen=True, use_attribute_docstrings=True, extra="ignore")

    peers_tls_ca: Path | None = None
    """PEM file of the authority that the other services' certificates come from; turns TLS to them on."""
    peers_tls_cert: Path | None = None
    """PEM file with this service's own certificate, for mutual TLS with the other services."""
    peers_tls_key: Path | None = None
    """PEM file with the private key of peers_tls_cert."""

    @field_validator("peers_tls_ca", "peers_tls_cert", "peers_tls_key")
    @classmethod
    def _peer_file_is_readable(cls, path: Path | None) -> Path | None:
        return check_pem_file(path)

    @model_validator(mode="after")
    def _identity_is_complete(self) -> Self:
        if (self.peers_tls_cert is None) != (self.peers_tls_key is None):
            raise ValueError(
                f"{variable_name(type(self), 'peers_tls_cert')} and {variable_name(type(self), 'peers_tls_key')} go "
                "together; set both or neither"
            )
        return self

    @property
    def peers_tls(self) -> ChannelTls:
        """The arguments of a channel to another service."""
        return {"tls_ca": self.peers_tls_ca, "tls_cert": self.peers_tls_cert, "tls_key": self.peers_tls_key}


Settings = TypeVar("Settings", bound=BaseSettings)


def variable_name(settings: type[BaseSettings], field: str) -> str:
    """
    Return the environment variable that sets a field.

    >>> variable_name(ServiceSettings, "port")
    'PORT'
    """
    return f"{settings.model_config.get('env_prefix', '')}{field}".upper()


def load_settings(cls: type[Settings]) -> Settings:
    """Read the settings from the environment; say what to do about each wrong one, and exit with 2."""
    try:
        return cls()
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_url=False, include_context=False, include_input=False):
            message = problem["msg"].removeprefix("Value error, ")
            if not problem["loc"]:
                lines.append(message)
                continue
            field = str(problem["loc"][0])
            description = (cls.model_fields[field].description or "").strip() if field in cls.model_fields else ""
            said = "is not set" if problem["type"] == "missing" else message
            lines.append(f"{variable_name(cls, field)}: {said}. {description}".rstrip())
        _refuse(lines)
    except SettingsError as error:
        _refuse([f"{error}; give the variable in the form its documentation shows"])


def _refuse(lines: list[str]) -> NoReturn:
    sys.stderr.write("the settings are wrong, so the service does not start:\n")
    for line in lines:
        sys.stderr.write(f"  {line}\n")
    raise SystemExit(EXIT_BAD_SETTINGS)
