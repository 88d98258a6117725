"""Settings of the trainer service."""

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from weft_common.settings import BucketSettings, PeerSettings, ServiceSettings, variable_name
from weft_trainer.kubernetes_settings import KubernetesSettings

__all__ = ["TrainerSettings"]


class TrainerSettings(ServiceSettings, BucketSettings, PeerSettings, KubernetesSettings):
    """What the trainer is told when it starts: WEFT_TRAINER_PORT, WEFT_TRAINER_CACHE_TARGET and so on."""

    model_config = SettingsConfigDict(
        env_prefix="WEFT_TRAINER_", frozen=True, use_attribute_docstrings=True, extra="ignore"
    )

    cache_target: str
    """host:port of the cache service."""
    cache_token: SecretStr | None = None
    """Bearer token of the cache service."""
    activations_target: str = ""
    """host:port of the activations service, for the replacement model; unset, evaluations do without it."""
    activations_token: SecretStr | None = None
    """Bearer token of the activations service."""
    work_dir: Path | None = None
    """Folder for the logs and exit codes of ranks; one of the system's temporary folder where unset."""
    launcher: Literal["local", "kubernetes"] = "local"
    """Where ranks run: `local` as processes of this machine, `kubernetes` as pods of the cluster."""
    report_host: str = "127.0.0.1"
    """Address that ranks report to; 0.0.0.0 for every one. It speaks TLS where the service does."""
    report_port: int = Field(default=0, ge=0, le=65535)
    """Port that ranks report to; 0 takes a free one and keeps it for the next start."""
    report_token: SecretStr | None = None
    """Bearer token that all ranks send with their reports; unset, each run has one of its own, made from `token`."""
    max_ranks: int = Field(default=16, ge=1)
    """Most ranks that one run may ask for."""
    rank_device: Literal["auto", "cpu", "cuda"] = "cpu"
    """What ranks compute on: `auto` is GPUs where every rank of a machine has one for itself, and processors elsewhere;
    `cuda` fails where there are too few. Evaluations of a checkpoint do the same, but where `auto` and the ranks are
    processes of this machine they compute on processors, as its GPUs are the training's."""
    rank_threads: int = Field(default=0, ge=0)
    """Threads of one rank; 0 shares the processors between the ranks of a run."""
    keep_checkpoints: int = Field(default=0, ge=0)
    """Newest checkpoints of a run that stay, beside the best by evaluation and any that is being read; 0 keeps all."""
    mixed_row_groups: int = Field(default=16, ge=1)
    """Row groups that a step's tokens come from, over all ranks; a run that resumes keeps its own number."""
    read_ahead_bytes: int = Field(default=64 << 20, ge=0)
    """Bytes of a dataset that a rank reads ahead of those; at least one row group always is."""
    read_threads: int = Field(default=2, ge=1)
    """Row groups that a rank reads and decodes at once, in the background."""
    kept_read_bytes: int = Field(default=0, ge=0)
    """Bytes of shards that each rank keeps in its temporary folder for the epochs to come; 0 keeps none."""
    rank_retry_s: float = Field(default=600.0, ge=0)
    """Seconds that ranks ask a bucket or a cache again that refuses, before they give up."""
    rank_hang_s: float = Field(default=900.0, gt=0)
    """Seconds that ranks wait for one that does not come, before they say which it is and end."""
    max_upload_bytes: int = Field(default=3 << 30, ge=1)
    """Most bytes of transcoders' files on their way in, all together; they are held in the temporary folder, which must
    have room for more."""
    stop_grace_s: float = Field(default=6.0, ge=0)
    """Seconds that ranks are given to save and stop before they are ended."""
    drain_s: float = Field(default=2.0, ge=0)
    """Seconds that open calls are given to end when the service is told to stop; its ranks are stopped after that."""

    @field_validator("report_token")
    @classmethod
    def _report_token_is_sendable(cls, token: SecretStr | None) -> SecretStr | None:
        return cls._token_is_sendable(token)

    @model_validator(mode="after")
    def _launcher_has_what_it_needs(self) -> Self:
        def variable(field: str) -> str:
            return variable_name(type(self), field)

        if (self.tls_cert is None) != (self.peers_tls_ca is None):
            raise ValueError(
                f"ranks speak to the trainer as to the cache: set {variable('tls_cert')}, {variable('tls_key')} and "
                f"{variable('peers_tls_ca')}, or none of them"
            )
        if self.launcher == "local":
            return self
        needed = ["kubernetes_namespace", "kubernetes_rank_image", "kubernetes_reports_service"]
        needed += [] if self.insecure_no_auth else ["report_token", "kubernetes_auth_secret"]
        needed += ["kubernetes_bucket_secret"] if self.bucket_access_key is not None else []
        needed += ["kubernetes_tls_secret"] if self.tls_cert is not None else []
        missing = [variable(field) for field in needed if not getattr(self, field)]
        if missing:
            raise ValueError(f"{variable('launcher')}=kubernetes needs {', '.join(missing)} too; set them")
        if self.bucket_url.startswith(("file:", "memory:")):
            raise ValueError(
                f"{variable('bucket_url')} is {self.bucket_url!r}, which pods do not share: give an s3 bucket, or set "
                f"{variable('launcher')}=local"
            )
        if self.kubernetes_tls_secret and self.tls_cert is None:
            raise ValueError(
                f"{variable('kubernetes_tls_secret')} turns TLS on in ranks, but the trainer has none: set "
                f"{variable('tls_cert')} and {variable('tls_key')}, or unset it"
            )
        return self

    @model_validator(mode="after")
    def _rank_that_asks_again_does_not_hang(self) -> Self:
        if self.rank_hang_s <= self.rank_retry_s:
            hang, retry = (variable_name(type(self), field) for field in ("rank_hang_s", "rank_retry_s"))
            raise ValueError(
                f"a rank whose bucket is away for {self.rank_retry_s:g} s would be taken for one that hangs after "
                f"{self.rank_hang_s:g} s: make {hang} longer than {retry}"
            )
        return self

    @model_validator(mode="after")
    def _pods_trust_the_bucket(self) -> Self:
        if self.launcher == "local":
            return self
        own, *theirs = (
            variable_name(type(self), field)
            for field in ("bucket_ca", "kubernetes_bucket_ca_secret", "kubernetes_bucket_ca_config_map")
        )
        if self.kubernetes_bucket_ca_secret and self.kubernetes_bucket_ca_config_map:
            raise ValueError(f"{' and '.join(theirs)} exclude each other; unset one")
        told = bool(self.kubernetes_bucket_ca_secret or self.kubernetes_bucket_ca_config_map)
        if told != (self.bucket_ca is not None):
            raise ValueError(
                f"ranks trust the bucket's authority as the trainer does: set {own} and one of {' and '.join(theirs)}, "
                "or none of them"
            )
        return self

    def resolved_work_dir(self) -> Path:
        """Return the folder for logs and exit codes: the same one at every start on the same bucket."""
        if self.work_dir is not None:
            return self.work_dir
        bucket = hashlib.sha256(self.bucket_url.encode()).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"weft-trainer-{os.getuid()}" / bucket

    def threads_for(self, num_ranks: int) -> int:
        """Return the threads of one rank among so many; of a pod, those that it asks the cluster for."""
        if self.launcher == "kubernetes":
            return self.rank_threads or self.kubernetes_rank_cpus
        return self.rank_threads or max(1, (os.cpu_count() or 1) // max(1, num_ranks))
