"""What the launcher tells a rank, by the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from weft_common.settings import ChannelTls, check_pem_file, variable_name

__all__ = ["ConvertSettings", "ExportSettings", "JobSettings", "RankSettings", "ReplacementSettings", "WorkerSettings"]


class JobSettings(BaseSettings):
    """Common to every process that the trainer starts."""

    model_config = SettingsConfigDict(env_prefix="WEFT_WORKER_", frozen=True)

    bucket_url: str
    """The bucket, as weft_store.open_store takes it."""
    bucket_access_key: SecretStr | None = None
    """For S3."""
    bucket_secret_key: SecretStr | None = None
    """For S3."""
    bucket_ca: Path | None = None
    """PEM file of the authority that an s3+https bucket's certificate comes from; the system's own where unset."""
    log_level: str = "info"
    """debug, info, warning or error."""

    @field_validator("bucket_ca")
    @classmethod
    def _authority_is_readable(cls, path: Path | None) -> Path | None:
        return check_pem_file(path)


class WorkerSettings(JobSettings):
    """Common to what works on a run: ranks, export, replacement."""

    run: str
    """Id of the run."""
    attempt: int = 0
    """Which start of the ranks this is."""
    cache_target: str
    """host:port of the cache service."""
    cache_token: SecretStr | None = None
    """Its bearer token."""
    tls_ca: Path | None = None
    """PEM file of the authority that the services' certificates come from; turns TLS to them on."""
    tls_cert: Path | None = None
    """PEM file with the ranks' own certificate, for mutual TLS."""
    tls_key: Path | None = None
    """PEM file with the private key of tls_cert."""
    threads: int = 1
    """Threads of torch's matrix products in this process."""

    @field_validator("tls_ca", "tls_cert", "tls_key")
    @classmethod
    def _file_is_readable(cls, path: Path | None) -> Path | None:
        return check_pem_file(path)

    @model_validator(mode="after")
    def _identity_is_complete(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError(
                f"{variable_name(type(self), 'tls_cert')} and {variable_name(type(self), 'tls_key')} go together; "
                "set both or neither"
            )
        return self

    @property
    def tls(self) -> ChannelTls:
        """The arguments of a channel to a service."""
        return {"tls_ca": self.tls_ca, "tls_cert": self.tls_cert, "tls_key": self.tls_key}


class RankSettings(WorkerSettings):
    """One rank."""

    trainer_target: str = ""
    """host:port that takes reports; empty reports to nobody."""
    trainer_token: SecretStr | None = None
    """Its bearer token."""
    rendezvous_s: float = 600.0
    """Seconds that a rank waits for the name of rank 0 to resolve, and then for all ranks to come."""
    hang_s: float = Field(default=900.0, gt=0)
    """Seconds that a rank waits for the others in one exchange before it tells who has not come, and ends; longer than
    retry_s, as a rank whose bucket is away is late and does not hang."""
    mode: Literal["train", "evaluate"] = "train"
    """What to do."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """What the rank computes on: `auto` is a GPU where every rank of its machine has one. LOCAL_RANK says which."""
    checkpoint_step: int = 0
    """For `evaluate`: which checkpoint."""
    evaluation_tokens: int = 0
    """For `evaluate`: held-out tokens over all ranks, 0 means all."""
    metrics_port: int | None = None
    """Port of /metrics, on every address; unset shows nothing, as where ranks share a machine."""
    mixed_row_groups: int = Field(default=16, ge=1)
    """Row groups that a step's tokens come from, over all ranks; a run that resumes keeps its own number."""
    read_ahead_bytes: int = Field(default=64 << 20, ge=0)
    """Bytes of codes that a rank reads ahead of those that it mixes; at least one row group always is."""
    read_threads: int = Field(default=2, ge=1)
    """Row groups that a rank reads and decodes at once, in the background."""
    kept_read_bytes: int = Field(default=0, ge=0)
    """Bytes of shards that a rank keeps below TMPDIR for the epochs to come; 0 keeps none."""
    keep_checkpoints: int = Field(default=0, ge=0)
    """Newest checkpoints that stay, beside the best by evaluation and those that are being read; 0 keeps all."""
    retry_s: float = Field(default=600.0, ge=0)
    """Seconds that a bucket or a cache that refuses is asked again, before the rank gives up."""


class ExportSettings(WorkerSettings):
    """An export."""

    checkpoint_step: int
    """Which checkpoint."""
    transcoder: str
    """Id of the transcoder to write."""


class ReplacementSettings(WorkerSettings):
    """A measurement of the replacement model."""

    checkpoint_step: int
    """Which checkpoint."""
    replacement_tokens: int
    """Held-out tokens to run, in whole sequences."""
    activations_target: str
    """host:port of the activations service."""
    activations_token: SecretStr | None = None
    """Its bearer token."""


class ConvertSettings(JobSettings):
    """A conversion between layouts; it talks to the bucket only."""

    direction: Literal["in", "out"]
    """`in` makes a transcoder of files, `out` writes one for others."""
    transcoder: str
    """Id of the transcoder to make or to write."""
    layout: str
    """Of the files that are read, or that are written."""
    source_prefix: str
    """Where the files lie that are read."""
    model: str
    """`models/{model}` that it is for."""
    model_revision: str = ""
    """For `in`: of that model's checkpoint."""
    input_hook: str = ""
    """For `in`: what it reads, where that is not what the files say."""
