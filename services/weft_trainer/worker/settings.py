"""What the launcher tells a rank, by the environment."""

from __future__ import annotations

from typing import Literal

from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["ExportSettings", "RankSettings", "WorkerSettings"]


class WorkerSettings(BaseSettings):
    """Common to ranks and export."""

    model_config = SettingsConfigDict(env_prefix="WEFT_WORKER_", frozen=True)

    run: str
    """Id of the run."""
    attempt: int = 0
    """Which start of the ranks this is."""
    bucket_url: str
    """The bucket, as weft_store.open_store takes it."""
    bucket_access_key: SecretStr | None = None
    """For S3."""
    bucket_secret_key: SecretStr | None = None
    """For S3."""
    cache_target: str
    """host:port of the cache service."""
    cache_token: SecretStr | None = None
    """Its bearer token."""
    threads: int = 1
    """Threads of torch's matrix products in this process."""
    log_level: str = "info"
    """debug, info, warning or error."""


class RankSettings(WorkerSettings):
    """One rank."""

    trainer_target: str = ""
    """host:port that takes reports; empty reports to nobody."""
    trainer_token: SecretStr | None = None
    """Its bearer token."""
    mode: Literal["train", "evaluate"] = "train"
    """What to do."""
    checkpoint_step: int = 0
    """For `evaluate`: which checkpoint."""
    evaluation_tokens: int = 0
    """For `evaluate`: held-out tokens over all ranks, 0 means all."""
    metrics_port: int | None = None
    """Port of /metrics, on every address; unset shows nothing, as where ranks share a machine."""
    pool_row_groups: int = 4
    """Row groups that are mixed in memory."""


class ExportSettings(WorkerSettings):
    """An export."""

    checkpoint_step: int
    """Which checkpoint."""
    transcoder: str
    """Id of the transcoder to write."""
